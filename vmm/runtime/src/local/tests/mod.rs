//! What needs more of a home than one module: boxes that live, a model of the home, and losses of power.

mod live;
mod model;
mod power;
