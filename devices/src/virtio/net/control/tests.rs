use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::testing::DATA;
use crate::virtio::testing::memory;

const OWN: Mac = [2, 0, 0, 0, 0, 1];
const OTHER: Mac = [2, 0, 0, 0, 0, 2];
const GROUP: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// Executes a command in one piece.
fn apply(settings: &mut Settings, command: &[u8]) -> bool {
    let memory = memory();
    memory.write_slice(command, GuestAddress(DATA)).unwrap();
    let command = Buffers::of(&memory, DATA, command.len());
    u32::from(settings.command(command)) == VIRTIO_NET_OK
}

fn table_set(unicast: &[Mac], multicast: &[Mac]) -> Vec<u8> {
    let mut command = vec![1, 0];
    for table in [unicast, multicast] {
        command.extend(u32::try_from(table.len()).unwrap().to_le_bytes());
        command.extend(table.as_flattened());
    }
    command
}

fn passing(settings: &Settings) -> Vec<Mac> {
    [OWN, BROADCAST, OTHER, GROUP].into_iter().filter(|&mac| settings.accepts(mac)).collect()
}

#[test]
fn all_frames_pass_until_the_driver_sets_a_filter() {
    let mut settings = Settings::new(OWN);
    assert_eq!(passing(&settings).len(), 4);
    assert!(apply(&mut settings, &[0, 0, 0]));
    assert_eq!(passing(&settings), [OWN, BROADCAST]);
    assert!(apply(&mut settings, &[0, 1, 1]));
    assert_eq!(passing(&settings), [OWN, BROADCAST, GROUP]);
    assert!(apply(&mut settings, &[0, 1, 0]));
    assert!(apply(&mut settings, &table_set(&[OTHER], &[])));
    assert_eq!(passing(&settings), [OWN, BROADCAST, OTHER]);
    assert!(apply(&mut settings, &table_set(&[], &[OTHER, GROUP])));
    assert_eq!(passing(&settings), [OWN, BROADCAST, GROUP]);
    assert!(apply(&mut settings, &[0, 0, 1]));
    assert_eq!(passing(&settings).len(), 4);
}

#[test]
fn a_long_table_lets_all_addresses_of_its_kind_pass() {
    let mut settings = Settings::new(OWN);
    assert!(apply(&mut settings, &[0, 0, 0]));
    let many = (0..=TABLE).map(|i| [6, 6, 6, 6, 6, i as u8]).collect::<Vec<_>>();
    assert!(apply(&mut settings, &table_set(&many[..TABLE], &[])));
    assert!(settings.accepts(many[TABLE - 1]) && !settings.accepts(OTHER));
    assert!(apply(&mut settings, &table_set(&many, &[])));
    assert_eq!(passing(&settings), [OWN, BROADCAST, OTHER]);
}

#[test]
fn a_new_address_replaces_the_guests_own() {
    let mut settings = Settings::new(OWN);
    assert!(apply(&mut settings, &[0, 0, 0]));
    assert!(apply(&mut settings, &[&[1, 1][..], &OTHER].concat()));
    assert_eq!(settings.mac, OTHER);
    assert_eq!(passing(&settings), [BROADCAST, OTHER]);
    assert!(
        !apply(&mut settings, &[&[1, 1][..], &GROUP].concat()),
        "a multicast address is refused"
    );
    assert_eq!(settings.mac, OTHER);
}

#[test]
fn unknown_and_truncated_commands_change_nothing() {
    let mut settings = Settings::new(OWN);
    let before = settings.clone();
    let good = table_set(&[OTHER], &[GROUP]);
    let mut commands = vec![vec![], vec![0], vec![0, 2, 1], vec![4, 0, 1, 0], vec![255, 255, 0]];
    commands.extend((2..good.len()).map(|len| good[..len].to_vec()));
    commands.push([&[1, 0][..], &[0xff; 64]].concat());
    commands.push(vec![0; MAX_COMMAND + 1]);
    for command in commands {
        assert!(!apply(&mut settings, &command), "{} bytes", command.len());
        assert_eq!(settings, before);
    }
}
