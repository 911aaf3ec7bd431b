//! Plans of small fleets.
