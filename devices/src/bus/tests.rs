use proptest::prelude::*;

use super::*;

/// A device that reads as its number, and records the last access.
struct Probe {
    number: u8,
    last: Option<(u64, Vec<u8>)>,
}

impl BusDevice for Probe {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.last = Some((offset, data.to_vec()));
        data.fill(self.number);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.last = Some((offset, data.to_vec()));
    }
}

fn probe(number: u8) -> Arc<Mutex<Probe>> {
    Arc::new(Mutex::new(Probe { number, last: None }))
}

#[test]
fn an_access_reaches_the_device_whose_range_contains_it() {
    let mut bus = Bus::new();
    let (low, high) = (probe(1), probe(2));
    bus.insert(0x2000..0x2008, high.clone()).unwrap();
    bus.insert(0x1000..0x2000, low.clone()).unwrap();

    let mut data = [0xaa; 4];
    bus.read(0x1ffc, &mut data);
    assert_eq!(data, [1; 4]);
    assert_eq!(low.lock().unwrap().last.take(), Some((0xffc, vec![0; 4])));

    bus.write(0x2004, &[9, 8]);
    assert_eq!(high.lock().unwrap().last.take(), Some((4, vec![9, 8])));

    for (address, len) in
        [(0xfff, 1), (0xfff, 2), (0x1ffd, 4), (0x2006, 4), (0x2008, 1), (u64::MAX, 8), (0x1000, 0)]
    {
        let mut data = vec![0; len];
        bus.read(address, &mut data);
        bus.write(address, &data);
        assert!(data.iter().all(|&byte| byte == 0xff), "{address:#x} belongs to no device");
    }
    assert!(low.lock().unwrap().last.is_none() && high.lock().unwrap().last.is_none());
}

#[test]
fn ranges_are_refused_with_a_reason() {
    let mut bus = Bus::new();
    assert_eq!(bus.insert(5..5, probe(0)), Err(BusError::Empty(5..5)));
    bus.insert(0x10..0x20, probe(0)).unwrap();
    let refused = bus.insert(0x1f..0x21, probe(0)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "bus range 0x1f..0x21 overlaps 0x10..0x20: place the device elsewhere"
    );
}

proptest! {
    /// The bus behaves like a plain list of ranges.
    #[test]
    fn agrees_with_a_linear_search(
        ranges in prop::collection::vec((0u64..64, 1u64..16), 0..12),
        accesses in prop::collection::vec((0u64..90, 1usize..9), 0..32),
    ) {
        let mut bus = Bus::new();
        let mut model: Vec<(Range<u64>, u8)> = Vec::new();
        for (number, (start, len)) in (0..).zip(ranges) {
            let range = start..start + len;
            let free = model.iter().all(|(old, _)| old.end <= range.start || range.end <= old.start);
            prop_assert_eq!(bus.insert(range.clone(), probe(number)).is_ok(), free);
            if free {
                model.push((range, number));
            }
        }
        for (address, len) in accesses {
            let mut data = vec![0; len];
            bus.read(address, &mut data);
            let owner = model
                .iter()
                .find(|(range, _)| range.start <= address && address + len as u64 <= range.end)
                .map_or(0xff, |(_, number)| *number);
            prop_assert_eq!(data, vec![owner; len]);
        }
    }
}
