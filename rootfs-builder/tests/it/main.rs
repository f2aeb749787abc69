//! The crate as its users see it, on images made by hand and by the usual tools.

mod archives;
mod directories;
mod layers;
mod layouts;
mod registry;
mod store;
mod support;
mod tools;
mod transfer;
