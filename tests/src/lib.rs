//! Promises to users, tried on a real cluster.
