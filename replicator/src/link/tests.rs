//! Two ends in one process, over a real loopback connection.
