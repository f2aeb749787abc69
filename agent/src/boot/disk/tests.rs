use super::*;

#[test]
fn the_superblock_tells_the_size() {
    let mut superblock = [0; 1024];
    assert_eq!(Geometry::parse(&superblock), None);
    superblock[0x38..0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
    superblock[0x18] = 2;
    superblock[4..8].copy_from_slice(&0x2000_u32.to_le_bytes());
    superblock[0x150..0x154].copy_from_slice(&1_u32.to_le_bytes());
    // Without the 64-bit feature, the high half means something else.
    assert_eq!(Geometry::parse(&superblock), Some(Geometry { block_size: 4096, blocks: 0x2000 }));
    superblock[0x60] = 0x80;
    assert_eq!(
        Geometry::parse(&superblock),
        Some(Geometry { block_size: 4096, blocks: 0x1_0000_2000 })
    );
    superblock[0x18] = 7;
    assert_eq!(Geometry::parse(&superblock), None);
}
