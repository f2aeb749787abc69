use proptest::prelude::*;

use super::*;

fn all(meminfo: &[u8], stat: &[u8], loadavg: &[u8]) -> GuestMetrics {
    let mut metrics = GuestMetrics::default();
    set_memory(&mut metrics, meminfo);
    set_cpus(&mut metrics, stat);
    set_load(&mut metrics, loadavg);
    metrics
}

#[test]
fn the_tables_of_the_kernel_are_parsed() {
    let meminfo = b"MemTotal:        2029252 kB\nMemFree:         1808404 kB\n\
        MemAvailable:    1822012 kB\nSwapCached:  7 kB\nSwapTotal:   100 kB\nSwapFree:  60 kB\n";
    let stat = b"cpu  100 20 30 4000 500 6 7 8 90 9\ncpu0 50 10 15 2000 250 3 3 4 45 4\n\
        cpu1 50 10 15 2000 250 3 4 4 45 5\nintr 5\ncputime 3\n";
    assert_eq!(
        all(meminfo, stat, b"0.52 12.08 100.00 1/75 200\n"),
        GuestMetrics {
            memory_total: 2029252 << 10,
            memory_used: 207240 << 10,
            memory_available: 1822012 << 10,
            swap_total: 100 << 10,
            swap_used: 40 << 10,
            load_x100: [52, 1208, 10000],
            cpus: 2,
            cpu_user_us: 1_200_000,
            cpu_system_us: 430_000,
            cpu_idle_us: 45_000_000,
            ..GuestMetrics::default()
        }
    );
    assert_eq!(uptime(b"350735.47 234388.90\n"), 350_735_470_000);
}

#[test]
fn this_machine_has_metrics() {
    let metrics = metrics().unwrap();
    assert!(metrics.memory_total >= metrics.memory_available && metrics.memory_available > 0);
    assert!(metrics.disk_size >= metrics.disk_used && metrics.disk_used > 0);
    assert!(metrics.uptime_us > 0 && metrics.cpus > 0 && metrics.processes > 0);
    assert!(metrics.cpu_user_us > 0 && metrics.cpu_system_us > 0);
}

proptest! {
    #[test]
    fn garbage_never_panics(table: Vec<u8>, digits in "[0-9. ]{0,60}") {
        all(&table, &table, &table);
        let line = format!("cpu {digits}\nMemTotal: {digits}\n");
        all(line.as_bytes(), line.as_bytes(), digits.as_bytes());
        uptime(digits.as_bytes());
    }
}
