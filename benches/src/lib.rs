//! An empty library: the benchmarks are in `benches` (`cargo bench -p boxlite-benches --bench boot`) and
//! `src/bin`.

#![forbid(unsafe_code)]
