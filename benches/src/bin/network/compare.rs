//! The measurements of all stacks, and their ratios.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::stack::Stack;
use crate::{client, lab};

const MTUS: [u16; 2] = [65_520, 1500];

/// Each stack's best result, by MTU and name of the measurement.
type Results = BTreeMap<(u16, &'static str), Vec<(Stack, f64)>>;

struct Options {
    seconds: u32,
    rounds: u32,
    only: Option<Vec<String>>,
}

pub(crate) fn main() -> Result<()> {
    let options = options()?;
    if let Some(reason) = lab::missing(&["ip", "iperf3"]) {
        println!("SKIPPED: {reason}");
        return Ok(());
    }
    let mut results = Results::new();
    for round in 0..options.rounds {
        for mtu in MTUS {
            for stack in Stack::ALL {
                if options.only.as_ref().is_some_and(|only| !only.iter().any(|o| o == stack.name()))
                {
                    continue;
                }
                match stack.missing() {
                    Some(reason) if round == 0 => println!("SKIPPED: {}: {reason}", stack.name()),
                    Some(_) => {}
                    None => add(&mut results, stack, mtu, options.seconds),
                }
            }
        }
    }
    ratios(&results);
    Ok(())
}

/// Measures a stack, and records results that are better than earlier ones.
fn add(results: &mut Results, stack: Stack, mtu: u16, seconds: u32) {
    // A lab belongs to the thread that creates it.
    let figures = match thread::spawn(move || measure(stack, mtu, seconds)).join() {
        Ok(Ok(figures)) => figures,
        Ok(Err(e)) => return println!("FAILED: {} at MTU {mtu}: {e:#}", stack.name()),
        Err(_) => return println!("FAILED: {} at MTU {mtu}: a panic", stack.name()),
    };
    for (name, value) in figures {
        println!("{:<12} mtu {mtu:<6} {name:<24} {value:>10.2}", stack.name());
        let figures = results.entry((mtu, name)).or_default();
        match figures.iter_mut().find(|(known, _)| *known == stack) {
            None => figures.push((stack, value)),
            Some((_, best)) if smaller_is_better(name) => *best = best.min(value),
            Some((_, best)) => *best = best.max(value),
        }
    }
}

fn smaller_is_better(name: &str) -> bool {
    name.contains("µs")
}

fn options() -> Result<Options> {
    let mut options = Options { seconds: 2, rounds: 2, only: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--seconds" => options.seconds = value.parse()?,
            "--rounds" => options.rounds = value.parse()?,
            "--only" => options.only = Some(value.split(',').map(str::to_owned).collect()),
            _ => bail!("unknown option {arg}: use --seconds N, --rounds N or --only STACK,STACK"),
        }
    }
    Ok(options)
}

/// All measurements of a stack: Gbit/s, then microseconds.
fn measure(stack: Stack, mtu: u16, seconds: u32) -> Result<Vec<(&'static str, f64)>> {
    let lab = lab::Lab::new();
    let (_running, server) = stack.start(&lab, mtu)?;
    let mut figures = Vec::new();
    for (name, flows, reverse) in [
        ("guest to host, 1 flow", 1, false),
        ("host to guest, 1 flow", 1, true),
        ("guest to host, 8 flows", 8, false),
        ("host to guest, 8 flows", 8, true),
    ] {
        figures.push((name, client::throughput(&lab, &server, flows, reverse, seconds)?));
    }
    let (p50, p99) = client::latency(&lab, &server, Duration::from_secs(seconds.into()))?;
    figures.push(("connection, p50 in µs", p50));
    figures.push(("connection, p99 in µs", p99));
    Ok(figures)
}

/// Prints how our stack compares with the others: a ratio above 1 is better in every measurement.
fn ratios(results: &Results) {
    println!("\nours against the others (above 1 is better)");
    for ((mtu, name), figures) in results {
        let Some((_, ours)) = figures.iter().find(|(stack, _)| *stack == Stack::Ours) else {
            continue;
        };
        let others: Vec<String> = figures
            .iter()
            .filter(|(stack, _)| *stack != Stack::Ours)
            .map(|(stack, theirs)| {
                let ratio = if smaller_is_better(name) { theirs / ours } else { ours / theirs };
                format!("{} {ratio:.2}", stack.name())
            })
            .collect();
        println!("mtu {mtu:<6} {name:<24} {ours:>10.2}   {}", others.join("   "));
    }
}
