//! Tests of more than one module: live boxes, a model of the home, and power failures.

mod live;
mod model;
mod power;
