//! A guest made by hand, frame by frame, with a clock that is set by hand.

mod bounds;
mod frames;
pub(crate) mod guest;
mod tcp;
