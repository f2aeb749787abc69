use super::*;

#[test]
fn proc_is_one_here() {
    let kernel = KernelFileSystems::mounted();
    assert!(kernel.have(&rustix::fs::stat("/proc/self").unwrap()));
    assert!(!kernel.have(&rustix::fs::stat(std::env::current_exe().unwrap()).unwrap()));
}
