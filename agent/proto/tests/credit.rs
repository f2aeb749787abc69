//! Tests the credit rules with a writer, a reader and a consumer that take arbitrary steps.

use boxlite_proto::credit::{CreditError, ReceiveWindow, SendWindow, WINDOW};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// The writer sends up to this many bytes.
    Send(usize),
    /// A byte count arrives at the reader.
    Arrive,
    /// The consumer takes up to this many bytes that have arrived.
    Take(usize),
    /// A grant arrives at the writer.
    Grant,
}

fn step() -> impl Strategy<Value = Step> {
    let amount = || prop_oneof![1..100_usize, 1..200_000_usize, Just(usize::MAX)];
    prop_oneof![
        amount().prop_map(Step::Send),
        Just(Step::Arrive),
        amount().prop_map(Step::Take),
        Just(Step::Grant),
    ]
}

proptest! {
    #[test]
    fn memory_is_bounded_and_all_data_arrives(
        steps in proptest::collection::vec(step(), 0..300),
    ) {
        let (mut sender, mut receiver) = (SendWindow::default(), ReceiveWindow::default());
        let (mut data, mut grants) = (Vec::<usize>::new(), Vec::<u32>::new());
        let (mut sent, mut buffered, mut taken) = (0_usize, 0_usize, 0_usize);
        // The steps are followed by a last long transfer, which delivers everything in transit.
        let rest = (0..20).flat_map(|_| {
            [Step::Send(usize::MAX), Step::Arrive, Step::Take(usize::MAX), Step::Grant]
        });
        let before_rest = steps.len();
        let mut sent_before_rest = 0;
        for (i, step) in steps.into_iter().chain(rest).enumerate() {
            if i == before_rest {
                sent_before_rest = sent;
            }
            match step {
                Step::Send(bytes) => {
                    let bytes = bytes.min(sender.available());
                    sender.spend(bytes);
                    sent += bytes;
                    data.push(bytes);
                }
                Step::Arrive => for bytes in data.drain(..) {
                    prop_assert_eq!(receiver.receive(bytes), Ok(()));
                    buffered += bytes;
                },
                Step::Take(bytes) => {
                    let bytes = bytes.min(buffered);
                    buffered -= bytes;
                    taken += bytes;
                    grants.extend(receiver.take(bytes));
                }
                Step::Grant => for bytes in grants.drain(..) {
                    prop_assert_eq!(sender.grant(bytes), Ok(()));
                },
            }
            prop_assert!(buffered <= WINDOW as usize);
            prop_assert!(sent - taken <= WINDOW as usize);
        }
        prop_assert_eq!(sent, taken + buffered + data.iter().sum::<usize>());
        prop_assert!(sent - sent_before_rest >= 10 * (WINDOW as usize) / 4, "the writer starves");
    }

    #[test]
    fn a_peer_that_breaks_the_window_is_detected(sends in proptest::collection::vec(0..=WINDOW, 1..10)) {
        let mut receiver = ReceiveWindow::default();
        let mut total = 0_u64;
        for bytes in sends {
            total += u64::from(bytes);
            let result = receiver.receive(bytes as usize);
            prop_assert_eq!(result.is_ok(), total <= u64::from(WINDOW));
            if result.is_err() {
                return Ok(());
            }
        }
    }

    #[test]
    fn a_grant_of_more_than_was_sent_is_refused(sent in 0..=WINDOW, granted: u32) {
        let mut sender = SendWindow::default();
        sender.spend(sent as usize);
        let expected = if granted <= sent { Ok(()) } else { Err(CreditError) };
        prop_assert_eq!(sender.grant(granted), expected);
    }
}

#[test]
fn a_size_beyond_u32_breaks_the_window() {
    assert_eq!(ReceiveWindow::default().receive(usize::MAX), Err(CreditError));
}
