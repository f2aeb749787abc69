use super::*;

#[test]
fn proc_is_a_kernel_file_system() {
    let kernel = KernelFileSystems::mounted();
    assert!(kernel.contain(&rustix::fs::stat("/proc/self").unwrap()));
    assert!(!kernel.contain(&rustix::fs::stat(std::env::current_exe().unwrap()).unwrap()));
}
