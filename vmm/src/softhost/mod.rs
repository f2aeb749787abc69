//! The software host.
