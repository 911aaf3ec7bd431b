//! The logic, natively.
