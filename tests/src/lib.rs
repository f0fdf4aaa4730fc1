//! What the behaviour suites share.
