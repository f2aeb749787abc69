//! The VM: vCPUs, memory, disk, and the end of a box whose kernel ends.

use boxlite_tests::Launcher;

use crate::ends::KERNEL_PANIC;

const NO_OPTIONS: [&str; 0] = [];

/// A value of `/proc/meminfo`, in MiB.
fn mib(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    let kib: u64 = line.trim_matches([':', ' ']).trim_end_matches(" kB").parse().expect(line);
    kib >> 10
}

#[test]
fn a_box_has_the_vcpus_and_memory_of_its_options() {
    let Some(launcher) = Launcher::find() else { return };
    let default = launcher.shell(NO_OPTIONS, "nproc; cat /proc/meminfo").output().success();
    assert!(default.starts_with("1\n"), "{default}");
    let total = mib(&default, "MemTotal");
    assert!((1900..=2048).contains(&total), "{total} MiB");

    let options = ["--cpus", "4", "--memory", "300M"];
    let script =
        "nproc; cat /proc/meminfo; for cpu in 0 1 2 3; do taskset -c $cpu true || exit 9; done";
    let asked = launcher.shell(options, script).output().success();
    assert!(asked.starts_with("4\n"), "{asked}");
    let total = mib(&asked, "MemTotal");
    assert!((250..=300).contains(&total), "{total} MiB");
}

#[test]
fn only_a_nested_box_can_run_virtual_machines() {
    let Some(launcher) = Launcher::find() else { return };
    let script =
        "grep -cwE 'vmx|svm' /proc/cpuinfo; (: < /dev/kvm) 2>/dev/null && echo kvm || echo none
        grep -wE -o 'arch_perfmon|perfctr_core' /proc/cpuinfo; true";
    let default = launcher.shell(NO_OPTIONS, script).output().success();
    assert_eq!(default, "0\nnone");
    let asked = launcher.shell(["--nested"], script).output().success();
    // The software host of x86_64 supports it; other hosts, if their KVM does.
    let supported = !launcher.has_hardware() && boxlite_tests::arch() == "x86_64";
    assert!(!supported || asked.starts_with("1\nkvm"), "{asked}");
}

#[test]
fn the_smallest_box_runs() {
    let Some(launcher) = Launcher::find() else { return };
    let meminfo = launcher.shell(["--memory", "128"], "cat /proc/meminfo").output().success();
    let total = mib(&meminfo, "MemTotal");
    assert!((90..=128).contains(&total), "{total} MiB");
}

#[test]
fn memory_above_the_32_bit_gap_is_usable() {
    let Some(launcher) = Launcher::find() else { return };
    // The kernel allocates high memory first; data written there must be read back unchanged.
    let script = "cat /proc/meminfo; sed -n '/zone *Normal/,$p' /proc/zoneinfo | grep -m 1 present
        seq 1 4000000 | head -c 24000000 > /dev/shm/a; cp /dev/shm/a /dev/shm/b
        cmp /dev/shm/a /dev/shm/b && sha256sum < /dev/shm/b && seq 1 4000000 | head -c 24000000 | sha256sum";
    let output = launcher.shell(["--memory", "5G"], script).output().success();
    let total = mib(&output, "MemTotal");
    assert!((4800..=5120).contains(&total), "{total} MiB");
    let present =
        output.lines().find_map(|line| line.trim().strip_prefix("present")).expect("no zone");
    assert!(present.trim().parse::<u64>().unwrap() > (1 << 30) / 4096, "{present} pages");
    let sums: Vec<&str> = output.lines().rev().take(2).collect();
    assert_eq!(sums[0], sums[1]);
}

#[test]
fn the_disk_has_the_size_of_the_option_and_keeps_data() {
    let Some(launcher) = Launcher::find() else { return };
    let script = "df -k / | tail -n 1 | awk '{ print $2 }'
        seq 1 3000000 > /data; sync; echo 3 > /proc/sys/vm/drop_caches
        sha256sum < /data; seq 1 3000000 | sha256sum; rm /data; sync; df -k / | tail -n 1";
    let output = launcher.shell(["--disk-size", "20G"], script).output().success();
    let lines: Vec<&str> = output.lines().collect();
    let kib: u64 = lines[0].parse().expect(&output);
    assert!((19 << 20..=20 << 20).contains(&kib), "{kib} KiB");
    assert_eq!(lines[1], lines[2]);
}

#[test]
fn a_kernel_panic_is_reported_with_its_last_lines() {
    let Some(launcher) = Launcher::find() else { return };
    let output = launcher.shell(NO_OPTIONS, KERNEL_PANIC).output();
    output.fails_with(&["kernel panicked", "Kernel panic - not syncing", "kill init"]);
}

#[test]
fn a_kernel_panic_for_lack_of_memory_is_reported_as_such() {
    let Some(launcher) = Launcher::find() else { return };
    let script = "echo 2 > /proc/sys/vm/panic_on_oom; tail /dev/zero; echo survived";
    let output = launcher.shell(["--memory", "128M"], script).output();
    assert!(!output.stdout_lossy().contains("survived"), "the kernel did not panic");
    output.fails_with(&["the guest ran out of memory", "--memory"]);
}

#[test]
fn a_reboot_from_inside_the_box_is_reported() {
    let Some(launcher) = Launcher::find() else { return };
    let output = launcher.shell(NO_OPTIONS, "reboot -f; sleep 100").output();
    output.expect(137).says(&["ended while it was in use"]);
}

#[test]
fn a_process_that_takes_all_memory_is_killed_and_the_box_goes_on() {
    let Some(launcher) = Launcher::find() else { return };
    let script = "tail /dev/zero; echo code $?; echo still here";
    let output = launcher.shell(["--memory", "128M"], script).output().success();
    assert!(output.ends_with("code 137\nstill here"), "{output}");
}

#[test]
fn nothing_in_the_software_host_runs_on_its_first_cpu() {
    let Some(launcher) = Launcher::find() else { return };
    if launcher.has_hardware() {
        println!("SKIPPED: boxes run without the software host here");
        return;
    }
    if boxlite_tests::arch() != "x86_64" {
        println!("SKIPPED: the first CPU of a software host is kept free on x86_64 only");
        return;
    }
    // A guest on the first CPU crashes the software host sooner or later: see the agent's `keep_off_first_cpu`.
    let grep = ["grep", "Cpus_allowed_list", "/proc/self/status"];
    let allowed = launcher.softhost(grep).output().success();
    let list = allowed.split_ascii_whitespace().last().unwrap_or_default();
    let first = list.split(['-', ',']).next().and_then(|cpu| cpu.parse::<u32>().ok());
    assert_eq!(first, Some(1), "{allowed}");
    let nproc = launcher.softhost(["nproc"]).output().success();
    assert!(nproc.trim().parse::<u32>().expect("a number") >= 2, "{nproc}");
}
