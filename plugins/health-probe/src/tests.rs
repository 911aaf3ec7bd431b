//! What a user sees, case by case.
