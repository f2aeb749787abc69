//! Tests of the public API, on images made by hand and by common tools.

mod archives;
mod directories;
mod layers;
mod layouts;
mod platforms;
mod registry;
mod store;
mod support;
mod tools;
mod transfer;
