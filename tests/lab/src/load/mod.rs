//! An honest load.
