//! A 16550 serial port, for the guest's console: at I/O ports, or in memory with a register in each byte.

use std::io::{self, Write};

use boxlite_hv::Interrupt;
use vm_superio::Trigger;
use vm_superio::serial::{Error, NoEvents};

use crate::{BusDevice, LogBudget};

/// The size of the register window, in bytes.
pub const SERIAL_LEN: u64 = 8;

/// A line without an end is written out at this length, in bytes.
const MAX_LINE: usize = 256;

/// A serial port. A byte that cannot be written is lost, as on a wire. Its registers have 8 bits: other accesses read as
/// zero and write nothing.
pub struct Serial {
    port: vm_superio::Serial<Line, NoEvents, ByLine>,
    log: LogBudget,
}

struct Line(Interrupt);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.raise()
    }
}

/// Collects a line before it writes: the port writes and flushes each byte separately.
struct ByLine {
    out: Box<dyn Write + Send>,
    line: Vec<u8>,
}

impl ByLine {
    fn write_out(&mut self) -> io::Result<()> {
        let written = self.out.write_all(&self.line).and_then(|()| self.out.flush());
        self.line.clear();
        written
    }
}

impl Write for ByLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.ends_with(b"\n") || self.line.len() >= MAX_LINE {
            self.write_out()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ByLine {
    fn drop(&mut self) {
        // An error can no longer be reported.
        let _ = self.write_out();
    }
}

impl Serial {
    /// A port that raises `interrupt` and writes the guest's output to `out`, a line or 256 bytes at a
    /// time. `out` is written on vCPU threads: if it blocks, the guest stops.
    pub fn new(interrupt: Interrupt, out: Box<dyn Write + Send>) -> Self {
        let out = ByLine { out, line: Vec::new() };
        Self { port: vm_superio::Serial::new(Line(interrupt), out), log: LogBudget::default() }
    }

    /// Types `bytes` on the guest's console. Returns how many of them the port had room for.
    pub fn input(&mut self, bytes: &[u8]) -> usize {
        if self.port.fifo_capacity() == 0 {
            return 0;
        }
        let room = bytes.len().min(self.port.fifo_capacity());
        match self.port.enqueue_raw_bytes(bytes.get(..room).unwrap_or_default()) {
            Ok(count) => count,
            Err(e) => {
                self.warn(&e);
                room
            }
        }
    }

    fn warn(&self, error: &Error<io::Error>) {
        self.log.warn(format_args!("serial port: {error}"));
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            *value = self.port.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data)
            && let Err(e) = self.port.write(offset, *value)
        {
            self.warn(&e);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::Bus;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn serial() -> (Serial, Written, Arc<AtomicUsize>) {
        let (written, raised) = (Written::default(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&raised);
        let interrupt = Interrupt::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        (Serial::new(interrupt, Box::new(written.clone())), written, raised)
    }

    #[test]
    fn output_is_written_line_by_line() {
        let (mut serial, written, _) = serial();
        for byte in b"one\ntwo" {
            serial.write(0, &[*byte]);
        }
        serial.write(0, b"wide");
        assert_eq!(*written.0.lock().unwrap(), [b"one\n"]);
        for _ in 0..MAX_LINE {
            serial.write(0, b"x");
        }
        assert_eq!(written.0.lock().unwrap()[1].len(), MAX_LINE);
        drop(serial);
        assert_eq!(written.0.lock().unwrap()[2], b"xxx", "the rest goes out at the end");
    }

    #[test]
    fn input_interrupts_and_stops_when_the_port_is_full() {
        let (mut serial, _, raised) = serial();
        serial.write(1, &[1]); // received data available interrupt
        let before = raised.load(Ordering::Relaxed);
        assert_eq!(serial.input(b"ls"), 2);
        assert!(raised.load(Ordering::Relaxed) > before);
        let accepted = 2 + serial.input(&[b'x'; 1000]);
        assert!((16..1000).contains(&accepted));
        assert_eq!(serial.input(b"more"), 0);
        let mut read = Vec::new();
        for _ in 0..accepted {
            let mut byte = [0];
            serial.read(0, &mut byte);
            read.push(byte[0]);
        }
        assert_eq!(read[..2], *b"ls");
        assert_eq!(serial.input(b"more"), 4);
    }

    #[test]
    fn a_broken_output_loses_bytes_and_nothing_else() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut serial = Serial::new(Interrupt::new(|| Ok(())), Box::new(Broken));
        for _ in 0..100_000 {
            serial.write(0, b"\n");
        }
        let mut status = [0];
        serial.read(5, &mut status);
        assert_eq!(status[0] & 0x20, 0x20, "the transmitter is always empty");
    }

    #[test]
    fn on_a_memory_bus_only_bytes_count() {
        const BASE: u64 = 0x0c00_0000;
        const SCRATCH: u64 = BASE + 7;
        let (serial, written, _) = serial();
        let mut bus = Bus::new();
        bus.insert(BASE..BASE + SERIAL_LEN, Arc::new(Mutex::new(serial))).unwrap();
        bus.write(SCRATCH, &[0x5a]);
        for len in [2, 4, 8] {
            let mut data = vec![b'\n'; len];
            bus.write(BASE, &data);
            bus.read(BASE, &mut data);
            assert!(data.iter().all(|byte| *byte == 0));
        }
        let mut scratch = [0];
        bus.read(SCRATCH, &mut scratch);
        assert_eq!(scratch, [0x5a]);
        bus.write(BASE, b"\n");
        assert_eq!(*written.0.lock().unwrap(), [b"\n"]);
    }
}
