//! Inputs made of bytes, for the fuzz targets of every crate that parses.
//!
//! Random bytes alone seldom get past a parser's first field, so most inputs are a good sample with some edits. What
//! is *not* here: the samples, and what has to hold of what was parsed.

use bolero::{ValueGenerator, produce};

/// An input whose first byte is at least this is taken as it is.
const RAW: u8 = 224;

/// Up to `most` random bytes. (The engine's own inputs, those without a generator, are zeros.)
pub fn bytes(most: usize) -> impl ValueGenerator<Output = Vec<u8>> {
    produce::<Vec<u8>>().with().len(0..=most)
}

/// `sample` bent as the input says, four bytes an edit: what, where (two), and with what. Or the input itself.
#[must_use]
pub fn bent(sample: &[u8], input: &[u8]) -> Vec<u8> {
    if input.first().is_some_and(|first| *first >= RAW) {
        return input.to_vec();
    }
    let mut bytes = sample.to_vec();
    for edit in input.chunks_exact(4) {
        let at = usize::from(u16::from_be_bytes([edit[1], edit[2]])) % (bytes.len() + 1);
        match edit[0] % 8 {
            0 => bytes.insert(at, edit[3]),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = edit[3]),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_says_what_becomes_of_the_sample() {
        let sample = b"abcd";
        for (input, expected) in [
            (&[][..], &b"abcd"[..]),
            (&[0, 0, 1, b'x'], b"axbcd"),
            (&[1, 0, 1, b'x'], b"acd"),
            (&[2, 0, 1, b'x'], b"a"),
            (&[3, 0, 1, b'x'], b"axcd"),
            (&[3, 0, 1, b'x', 3, 0, 2, b'y'], b"axyd"),
            // Behind the end there is nothing to replace.
            (&[3, 0, 4, b'x'], b"abcd"),
            (&[RAW, 1, 2], &[RAW, 1, 2]),
        ] {
            assert_eq!(bent(sample, input), expected, "{input:?}");
        }
        assert_eq!(bent(b"", &[3, 9, 9, 9]), b"");
    }
}
