//! Which shard, and with a partition key which partition, a Milvus' proxy writes a row to. Pure.
//!
//! `pkg/util/typeutil/hash.go`, the same from 2.3 to 2.5: murmur3 of an integer's eight bytes, without the highest bit;
//! CRC-32 (IEEE) of the first 100 bytes of a string.

/// What a row is placed by: the value of its primary key, or of its partition key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value<'a> {
    Int(i64),
    Str(&'a str),
}

const STRING_BYTES: usize = 100;

impl Value<'_> {
    pub fn hash(self) -> u32 {
        match self {
            Value::Int(value) => murmur3(&value.to_le_bytes()) & 0x7fff_ffff,
            Value::Str(value) => {
                let bytes = value.as_bytes();
                crc32(bytes.get(..STRING_BYTES).unwrap_or(bytes))
            }
        }
    }

    /// Its place among `places`, of which there is at least one.
    pub fn place(self, places: usize) -> usize {
        self.hash() as usize % places.max(1)
    }
}

/// The partitions of a collection with a partition key in the order in which the hash counts them: by the number behind
/// the last `_`. `None` if one has no such number.
pub fn in_order<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Vec<&'a str>> {
    let mut numbered: Vec<(u32, &str)> = names
        .into_iter()
        .map(|name| Some((name.rsplit_once('_')?.1.parse().ok()?, name)))
        .collect::<Option<_>>()?;
    numbered.sort_unstable();
    Some(numbered.into_iter().map(|(_, name)| name).collect())
}

/// MurmurHash3_x86_32 with seed 0.
fn murmur3(bytes: &[u8]) -> u32 {
    let mix = |k: u32| {
        k.wrapping_mul(0xcc9e_2d51)
            .rotate_left(15)
            .wrapping_mul(0x1b87_3593)
    };
    let (words, rest) = bytes.as_chunks::<4>();
    let mut h = 0u32;
    for word in words {
        h ^= mix(u32::from_le_bytes(*word));
        h = h.rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |k, b| k << 8 | u32::from(*b));
        h ^= mix(tail);
    }
    h ^= bytes.len() as u32;
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| {
            (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values_of_both_functions() {
        // The check value of CRC-32, and those of MurmurHash3_x86_32 in its reference tests.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
        assert_eq!(murmur3(b""), 0);
        assert_eq!(murmur3(b"test"), 0xba6b_d213);
        assert_eq!(murmur3(b"Hello, world!"), 0xc036_3e43);
        assert_eq!(
            murmur3(b"The quick brown fox jumps over the lazy dog"),
            0x2e4f_f723
        );
    }

    #[test]
    fn a_string_counts_up_to_its_hundredth_byte() {
        let (long, longer) = ("ä".repeat(50), "ä".repeat(60));
        assert_eq!(Value::Str(&long).hash(), Value::Str(&longer).hash());
        assert_ne!(Value::Str("a").hash(), Value::Str("b").hash());
        assert!(Value::Int(-1).hash() <= i32::MAX as u32);
    }

    #[test]
    fn partitions_are_counted_by_their_number() {
        let all = ["_default_10", "_default_2", "_default_0"];
        let order = ["_default_0", "_default_2", "_default_10"];
        assert_eq!(in_order(all), Some(order.to_vec()));
        assert_eq!(in_order(["_default"]), None);
    }
}
