//! Keeps pairs as their owners asked: reads `ReplicationPair`, makes the objects, nominates, reports.
