//! Loads and stores of A64 (Arm ARM DDI 0487, C4.1.94): what the processor says of one in a syndrome, and its address.

/// A load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// What the syndrome describes: one general register without write-back of the address.
    pub(crate) transfer: Option<Transfer>,
    pub(crate) address: Address,
}

/// The transfer of one general register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) write: bool,
    /// The size, as a power of two (SAS).
    pub(crate) size: u32,
    /// Whether a load extends the sign (SSE).
    pub(crate) sign: bool,
    /// The register (SRT); 31 is XZR.
    pub(crate) register: u32,
    /// Whether the register has 64 bits (SF).
    pub(crate) wide: bool,
    /// Whether it is an acquire or a release (AR).
    pub(crate) ordered: bool,
}

/// The address of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A base register, of which 31 is the stack pointer, and an offset.
    Immediate { base: u32, offset: i64 },
    /// A base register and an index register, extended and shifted.
    Register { base: u32, index: u32, option: u32, shift: u32 },
    /// Relative to the PC.
    Literal { offset: i64 },
}

impl Transfer {
    /// The syndrome's bits about the transfer, with ISV.
    pub(crate) fn iss(&self) -> u64 {
        1 << 24
            | u64::from(self.size) << 22
            | u64::from(self.sign) << 21
            | u64::from(self.register) << 16
            | u64::from(self.wide) << 15
            | u64::from(self.ordered) << 14
            | u64::from(self.write) << 6
    }
}

impl Address {
    /// The virtual address, given the PC and the registers.
    pub(crate) fn resolve<E>(
        self,
        pc: u64,
        register: impl Fn(u32) -> Result<u64, E>,
        stack: impl Fn() -> Result<u64, E>,
    ) -> Result<u64, E> {
        let base = |base| if base == 31 { stack() } else { register(base) };
        Ok(match self {
            Self::Immediate { base: n, offset } => base(n)?.wrapping_add_signed(offset),
            Self::Literal { offset } => pc.wrapping_add_signed(offset),
            Self::Register { base: n, index, option, shift } => {
                let index = if index == 31 { 0 } else { register(index)? };
                let extended = match option {
                    0b010 => index & 0xffff_ffff,
                    0b110 => i64::from(index as u32 as i32) as u64,
                    _ => index,
                };
                base(n)?.wrapping_add(extended << shift)
            }
        })
    }
}

fn bits(word: u32, low: u32, count: u32) -> u32 {
    word >> low & ((1 << count) - 1)
}

/// A field as a signed number.
fn signed(word: u32, low: u32, count: u32) -> i64 {
    let unused = 32 - count;
    i64::from((bits(word, low, count) << unused) as i32 >> unused)
}

/// Decodes a load or store; `None` for other instructions, and for atomic and exclusive ones.
pub(crate) fn decode(word: u32) -> Option<Access> {
    match bits(word, 27, 3) {
        0b111 => register(word),
        0b101 => Some(pair(word)),
        0b011 if bits(word, 24, 2) == 0 => literal(word),
        0b001 if bits(word, 24, 6) == 0b00_1000 => ordered(word),
        _ => None,
    }
}

/// One register.
fn register(word: u32) -> Option<Access> {
    let (vector, size, opc, base) =
        (bits(word, 26, 1) == 1, bits(word, 30, 2), bits(word, 22, 2), bits(word, 5, 5));
    // A vector of 16 bytes has the size in the other field.
    let scale = if vector && opc >= 2 { 4 } else { size };
    let (address, write_back) = match (bits(word, 24, 2), bits(word, 21, 1), bits(word, 10, 2)) {
        (0b01, ..) => {
            let offset = i64::from(bits(word, 10, 12)) << scale;
            (Address::Immediate { base, offset }, false)
        }
        (0b00, 0, mode) => {
            let offset = if mode == 0b01 { 0 } else { signed(word, 12, 9) };
            (Address::Immediate { base, offset }, mode & 1 == 1)
        }
        (0b00, 1, 0b10) => {
            let (index, option) = (bits(word, 16, 5), bits(word, 13, 3));
            let shift = bits(word, 12, 1) * scale;
            (Address::Register { base, index, option, shift }, false)
        }
        // LDAPR.
        (0b00, 1, 0b00) if !vector && bits(word, 12, 9) == 0b1_1111_1100 && opc == 0b10 => {
            let transfer = Transfer { ordered: true, ..transfer(word, size, 0b01) };
            let address = Address::Immediate { base, offset: 0 };
            return Some(Access { transfer: Some(transfer), address });
        }
        _ => return None,
    };
    let transfer = (!vector && !write_back).then(|| transfer(word, size, opc));
    Some(Access { transfer, address })
}

/// The transfer of a general register, by the instruction's size and opc fields.
fn transfer(word: u32, size: u32, opc: u32) -> Transfer {
    Transfer {
        write: opc == 0b00,
        size,
        sign: opc >= 0b10,
        register: bits(word, 0, 5),
        wide: match opc {
            0b10 => true,
            0b11 => false,
            _ => size == 3,
        },
        ordered: false,
    }
}

/// A pair of registers, which no syndrome describes.
fn pair(word: u32) -> Access {
    let (opc, vector) = (bits(word, 30, 2), bits(word, 26, 1) == 1);
    let scale = match vector {
        true => 2 + opc,
        false => 2 + (opc >> 1),
    };
    let after = bits(word, 23, 2) == 0b01;
    let offset = if after { 0 } else { signed(word, 15, 7) << scale };
    Access { transfer: None, address: Address::Immediate { base: bits(word, 5, 5), offset } }
}

/// A load from an address relative to the PC.
fn literal(word: u32) -> Option<Access> {
    let address = Address::Literal { offset: signed(word, 5, 19) << 2 };
    let (size, opc) = match bits(word, 30, 2) {
        0b00 => (2, 0b01),
        0b01 => (3, 0b01),
        0b10 => (2, 0b10),
        _ => return None,
    };
    let vector = bits(word, 26, 1) == 1;
    Some(Access { transfer: (!vector).then(|| transfer(word, size, opc)), address })
}

/// LDAR, STLR, LDLAR and STLLR.
fn ordered(word: u32) -> Option<Access> {
    if bits(word, 23, 1) == 0 || bits(word, 21, 1) == 1 {
        return None;
    }
    let transfer = transfer(word, bits(word, 30, 2), bits(word, 22, 1));
    let address = Address::Immediate { base: bits(word, 5, 5), offset: 0 };
    Some(Access { transfer: Some(Transfer { ordered: true, ..transfer }), address })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Size, sign and width of a load, as the processor describes it.
    fn load(size: u32, sign: bool, wide: bool) -> Option<(bool, u32, bool, bool)> {
        Some((false, size, sign, wide))
    }

    fn described(word: u32) -> Option<(bool, u32, bool, bool)> {
        let it = decode(word)?.transfer?;
        Some((it.write, it.size, it.sign, it.wide))
    }

    #[test]
    fn transfers_are_those_of_the_instructions() {
        let stored = |size, wide| Some((true, size, false, wide));
        for (word, expected) in [
            (0x3940_0001, load(0, false, false)), // ldrb w1, [x0]
            (0x3900_2001, stored(0, false)),      // strb w1, [x0, #8]
            (0x7940_0001, load(1, false, false)), // ldrh w1, [x0]
            (0xb940_0001, load(2, false, false)), // ldr w1, [x0]
            (0xf940_0001, load(3, false, true)),  // ldr x1, [x0]
            (0xf900_0401, stored(3, true)),       // str x1, [x0, #8]
            (0x3980_0001, load(0, true, true)),   // ldrsb x1, [x0]
            (0x39c0_0001, load(0, true, false)),  // ldrsb w1, [x0]
            (0xb980_0001, load(2, true, true)),   // ldrsw x1, [x0]
            (0xb822_6801, stored(2, false)),      // str w1, [x0, x2]
            (0x88df_fc01, load(2, false, false)), // ldar w1, [x0]
            (0xc89f_fc01, stored(3, true)),       // stlr x1, [x0]
            (0xb8bf_c001, load(2, false, false)), // ldapr w1, [x0]
            (0x1800_0041, load(2, false, false)), // ldr w1, . + 8
            (0xb840_4401, None),                  // ldr w1, [x0], #4
            (0xb840_4c01, None),                  // ldr w1, [x0, #4]!
            (0x2940_0c02, None),                  // ldp w2, w3, [x0]
            (0xbd40_0001, None),                  // ldr s1, [x0]
            (0xd503_201f, None),                  // nop
        ] {
            assert_eq!(described(word), expected, "{word:#x}");
        }
    }

    #[test]
    fn addresses_are_resolved() {
        let register = |n: u32| Ok::<_, ()>(0x1000 * u64::from(n + 1));
        let at = |word| {
            let address = decode(word).map(|it| it.address.resolve(0x8000, register, || Ok(0x77)));
            address.and_then(Result::ok)
        };
        assert_eq!(at(0xf900_0401), Some(0x1008)); // str x1, [x0, #8]
        assert_eq!(at(0xb822_6801), Some(0x4000)); // str w1, [x0, x2]
        assert_eq!(at(0xb822_7801), Some(0x1000 + 0x3000 * 4)); // str w1, [x0, x2, lsl #2]
        assert_eq!(at(0xf85f_83e1), Some(0x6f)); // ldur x1, [sp, #-8]
        assert_eq!(at(0xb840_4401), Some(0x1000)); // ldr w1, [x0], #4
        assert_eq!(at(0xb840_4c01), Some(0x1004)); // ldr w1, [x0, #4]!
        assert_eq!(at(0xa97f_0c02), Some(0x0ff0)); // ldp x2, x3, [x0, #-16]
        assert_eq!(at(0x1800_0041), Some(0x8008)); // ldr w1, . + 8
    }
}
