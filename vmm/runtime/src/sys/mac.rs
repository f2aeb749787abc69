//! What macOS reports about itself (`sysctl(3)`).

use crate::mac::System;

/// What the system reports; none on other systems.
#[cfg(not(target_os = "macos"))]
pub(crate) fn mac() -> Option<System> {
    None
}

/// What the system reports.
#[cfg(target_os = "macos")]
pub(crate) fn mac() -> Option<System> {
    Some(System {
        version: text(c"kern.osproductversion"),
        cpu: text(c"machdep.cpu.brand_string"),
        // Names that a system does not have are those of features that it does not have.
        is_arm64: number(c"hw.optional.arm64") == Some(1),
        is_translated: number(c"sysctl.proc_translated") == Some(1),
        has_hypervisor: number(c"kern.hv_support") == Some(1),
    })
}

#[cfg(target_os = "macos")]
fn text(name: &std::ffi::CStr) -> Option<String> {
    let mut value = [0_u8; 256];
    let len = read(name, &mut value)?;
    let text = std::ffi::CStr::from_bytes_until_nul(value.get(..len)?).ok()?;
    Some(text.to_str().ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(target_os = "macos")]
fn number(name: &std::ffi::CStr) -> Option<i32> {
    let mut value = [0_u8; 4];
    (read(name, &mut value)? == value.len()).then(|| i32::from_ne_bytes(value))
}

/// Reads a value; returns its length.
#[cfg(target_os = "macos")]
#[allow(unsafe_code)]
fn read(name: &std::ffi::CStr, value: &mut [u8]) -> Option<usize> {
    let mut len = value.len();
    // SAFETY: the name ends with a zero byte, the value has `len` bytes, and nothing is set.
    let result = unsafe {
        libc::sysctlbyname(
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            &mut len,
            std::ptr::null_mut(),
            0,
        )
    };
    (result == 0 && len <= value.len()).then_some(len)
}
