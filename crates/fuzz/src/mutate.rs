//! New inputs out of old ones.

use rand::Rng;
use rand::rngs::StdRng;

/// Longest input.
const LONGEST: usize = 4096;

/// Bytes that sit at the edges of numbers, lengths and texts.
const EDGES: [u8; 14] = [
    0, 1, 2, 8, 9, 0x0a, 0x12, b'"', b'{', b'[', 0x7f, 0x80, 0xfe, 0xff,
];

/// One to eight changes of `input`; `other` is another input that parts are taken from.
pub fn mutate(rng: &mut StdRng, input: &[u8], other: &[u8], words: &[&str]) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..1 << rng.random_range(0..4) {
        change(rng, &mut out, other, words);
    }
    out.truncate(LONGEST);
    out
}

fn change(rng: &mut StdRng, out: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    let at = rng.random_range(0..=out.len());
    let end = (at + rng.random_range(0..=32)).min(out.len());
    match rng.random_range(0..12) {
        0 => {
            if let Some(byte) = out.get_mut(at) {
                *byte ^= 1 << rng.random_range(0..8);
            }
        }
        1 => {
            if let Some(byte) = out.get_mut(at) {
                *byte = rng.random();
            }
        }
        2 => {
            if let Some(byte) = out.get_mut(at) {
                *byte = EDGES[rng.random_range(0..EDGES.len())];
            }
        }
        3 => {
            if let Some(byte) = out.get_mut(at) {
                let step = rng.random_range(1..=4u8);
                *byte = match rng.random() {
                    true => byte.wrapping_add(step),
                    false => byte.wrapping_sub(step),
                };
            }
        }
        4 => drop(out.drain(at..end)),
        5 => out.truncate(at),
        // A part once more, here or in another place.
        6 => {
            let part = out[at..end].to_vec();
            let to = rng.random_range(0..=out.len());
            out.splice(to..to, part);
        }
        7 => {
            let from = rng.random_range(0..=other.len());
            let till = (from + rng.random_range(0..=64)).min(other.len());
            out.splice(at..end, other[from..till].iter().copied());
        }
        8 => {
            out.truncate(at);
            let from = rng.random_range(0..=other.len());
            out.extend(&other[from..]);
        }
        // A number of protobuf, of any length.
        9 => {
            let mut number = rng.random::<u64>() >> rng.random_range(0..64u32);
            let mut varint = Vec::new();
            while number >= 0x80 {
                varint.push(number as u8 | 0x80);
                number >>= 7;
            }
            varint.push(number as u8);
            let till = (at + varint.len() * usize::from(rng.random::<bool>())).min(out.len());
            out.splice(at..till, varint);
        }
        10 if !words.is_empty() => {
            let word = words[rng.random_range(0..words.len())];
            let till = if rng.random() { end } else { at };
            out.splice(at..till, word.bytes());
        }
        // A field around the rest, or a bracket: what is nested may be nested deeper.
        _ => {
            let opening = [&b"{\"a\":"[..], b"[", b"\x0a\x7f", b"- "][rng.random_range(0..4usize)];
            for _ in 0..1 << rng.random_range(0..8) {
                out.splice(at..at, opening.iter().copied());
            }
        }
    }
}
