//! Benchmarks only: see `benches/`. Boot latency is `cargo bench -p boxlite-benches --bench boot`.

#![forbid(unsafe_code)]
