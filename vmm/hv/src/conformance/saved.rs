//! Checks of saved states.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::{Backend, DATA, MMIO, Machine, SECOND_MMIO, expect_write, guest, next, stay_out};
use crate::{Exit, Vcpu, Vm};

/// A counter saved in one VM continues in another.
pub fn saved_state_continues_in_another_machine<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::COUNT, MMIO) else { return };
    let mut vcpu = machine.vcpu();
    for n in 0..3u32 {
        expect_write(&mut vcpu, MMIO, &n.to_le_bytes());
    }
    let state = vcpu.save().expect("save");
    expect_write(&mut vcpu, MMIO, &3u32.to_le_bytes());
    drop(vcpu);
    drop(machine);

    let Some(other) = Machine::new::<B>(guest::COUNT, MMIO) else { return };
    let mut vcpu = other.vcpu();
    vcpu.restore(&state).expect("restore");
    for n in 3..6u32 {
        expect_write(&mut vcpu, MMIO, &n.to_le_bytes());
    }
    assert_eq!(other.memory.read(DATA), 0, "the counter lives in a register");
}

/// Both vCPUs continue in another VM, also the one that the guest had started.
pub fn saved_vcpus_continue_in_another_machine<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::START_SECOND, MMIO) else { return };
    let vm = &machine.vm;
    // They are moved, so that they close when the other side panics.
    let ((to_first, from_second), (to_second, from_first)) = (channel::<()>(), channel::<()>());
    let first = move |vcpu: &mut <B::Vm as Vm>::Vcpu| {
        expect_write(vcpu, MMIO, &0x5au32.to_le_bytes());
        from_second.recv().expect("vCPU 1 is outside the guest");
        let state = vm.save().expect("save the VM");
        to_second.send(()).expect("vCPU 1 waits");
        (state, vcpu.save().expect("save vCPU 0"))
    };
    let second = move |vcpu: &mut <B::Vm as Vm>::Vcpu, _: &AtomicBool| {
        for n in 0..3u32 {
            expect_write(vcpu, SECOND_MMIO, &n.to_le_bytes());
        }
        to_first.send(()).expect("vCPU 0 waits");
        from_first.recv().expect("vCPU 0 has saved the VM");
        vcpu.save().expect("save vCPU 1")
    };
    let ((vm_state, state), second_state) = machine.with_second(first, second);
    drop(machine);

    let Some(other) = Machine::new::<B>(guest::START_SECOND, MMIO) else { return };
    let (vm, (restored, wait)) = (&other.vm, channel::<()>());
    let first = move |vcpu: &mut <B::Vm as Vm>::Vcpu| {
        vm.restore(&vm_state).expect("restore the VM");
        vcpu.restore(&state).expect("restore vCPU 0");
        restored.send(()).expect("vCPU 1 waits");
    };
    let second = move |vcpu: &mut <B::Vm as Vm>::Vcpu, _: &AtomicBool| {
        wait.recv().expect("vCPU 0 is restored");
        vcpu.restore(&second_state).expect("restore vCPU 1");
        for n in 3..6u32 {
            expect_write(vcpu, SECOND_MMIO, &n.to_le_bytes());
        }
    };
    other.with_second(first, second);
}

/// The interrupt controller as the guest has set it is part of the saved states of the VM and the vCPU.
pub fn saved_controller_continues_in_another_machine<B: Backend>() {
    let Some(machine) = Machine::new::<B>(guest::SET_CONTROLLER, MMIO) else { return };
    let save = |vcpu: &mut <B::Vm as Vm>::Vcpu| {
        expect_write(vcpu, MMIO, &0u32.to_le_bytes());
        (machine.vm.save().expect("save the VM"), vcpu.save().expect("save the vCPU"))
    };
    let ((vm, vcpu), ()) = machine.with_second(save, stay_out);
    drop(machine);

    let Some(other) = Machine::new::<B>(guest::SET_CONTROLLER, MMIO) else { return };
    let first = |first: &mut <B::Vm as Vm>::Vcpu| {
        other.vm.restore(&vm).expect("restore the VM");
        first.restore(&vcpu).expect("restore the vCPU");
        for value in guest::CONTROLLER_STATE {
            expect_write(first, MMIO, &value.to_le_bytes());
        }
    };
    other.with_second(first, stay_out);
}

/// The timers as the guest has set them are part of the saved state of the vCPU. aarch64 only: timers in registers.
pub fn saved_timers_continue_in_another_machine<B: Backend>() {
    let Some((program, values)) = guest::TIMERS else { return };
    let Some(machine) = Machine::new::<B>(program, MMIO) else { return };
    let mut vcpu = machine.vcpu();
    expect_write(&mut vcpu, MMIO, &0u32.to_le_bytes());
    let state = vcpu.save().expect("save");
    drop(vcpu);
    drop(machine);

    let Some(other) = Machine::new::<B>(program, MMIO) else { return };
    let mut vcpu = other.vcpu();
    vcpu.restore(&state).expect("restore");
    for value in values {
        expect_write(&mut vcpu, MMIO, &value.to_le_bytes());
    }
}

/// The guest's clock (the time stamp counter, the virtual counter) goes on from the saved state.
pub fn saved_clock_does_not_step_back<B: Backend>() {
    /// Longer than it takes to create a VM, whose own clock would show less.
    const RUNNING: Duration = Duration::from_millis(300);
    let Some(machine) = Machine::new::<B>(guest::READ_CLOCK, MMIO) else { return };
    let save = |vcpu: &mut <B::Vm as Vm>::Vcpu| {
        let (start, mut clock) = (Instant::now(), read_clock(vcpu));
        while start.elapsed() < RUNNING {
            let now = read_clock(vcpu);
            assert!(now >= clock, "{now} after {clock}");
            clock = now;
        }
        (machine.vm.save().expect("save the VM"), vcpu.save().expect("save the vCPU"), clock)
    };
    let ((vm, vcpu, saved), ()) = machine.with_second(save, stay_out);
    drop(machine);

    let Some(other) = Machine::new::<B>(guest::READ_CLOCK, MMIO) else { return };
    let first = |first: &mut <B::Vm as Vm>::Vcpu| {
        other.vm.restore(&vm).expect("restore the VM");
        first.restore(&vcpu).expect("restore the vCPU");
        let clock = read_clock(first);
        assert!(clock >= saved, "{clock} after {saved}");
    };
    other.with_second(first, stay_out);
}

/// What [`guest::READ_CLOCK`] writes.
fn read_clock<C: Vcpu>(vcpu: &mut C) -> u64 {
    next(vcpu, |exit| match exit {
        Exit::MmioWrite { gpa: MMIO, data } => {
            u64::from_le_bytes(data.try_into().expect("8 bytes"))
        }
        other => panic!("expected the clock, got {other:?}"),
    })
}
