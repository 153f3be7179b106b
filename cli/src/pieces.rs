//! Files written in pieces of the size of a huge page, from multiples of that size on.
//!
//! A system that keeps files in huge pages (Linux from 6.16 on with ext4) can only make one where a write covers it
//! whole. A file that was written in odd pieces stays in small pages until it leaves memory, and weights are read from
//! those a third slower.

use std::io::{self, Write};

/// Bytes of a huge page of x86-64, and of most others.
const PIECE: usize = 2 << 20;

/// Whatever is written in parts of any size, as whole pieces. What is left is written by [`Write::flush`] only, so that
/// its error is seen.
pub struct Pieces<W> {
    into: W,
    held: Vec<u8>,
}

impl<W: Write> Pieces<W> {
    /// Begins at the beginning of a file.
    pub fn new(into: W) -> Self {
        Pieces { into, held: Vec::with_capacity(PIECE) }
    }
}

impl<W: Write> Write for Pieces<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.held.len());
        self.held.extend_from_slice(&bytes[..taken]);
        if self.held.len() == PIECE {
            self.into.write_all(&self.held)?;
            self.held.clear();
        }
        Ok(taken)
    }

    /// Writes what is left, which ends whole pieces: for the end of a file.
    fn flush(&mut self) -> io::Result<()> {
        self.into.write_all(&self.held)?;
        self.held.clear();
        self.into.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of the writes that arrive.
    #[derive(Default)]
    struct Seen(Vec<usize>, Vec<u8>);

    impl Write for &mut Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.len());
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn odd_parts_arrive_as_whole_pieces() {
        let parts: Vec<Vec<u8>> =
            [7, PIECE, 3 * PIECE + 5, 0, 1000].iter().map(|n| (0..*n).map(|i| i as u8).collect()).collect();
        let mut seen = Seen::default();
        let mut pieces = Pieces::new(&mut seen);
        parts.iter().for_each(|part| pieces.write_all(part).expect("writes"));
        pieces.flush().expect("writes");
        assert_eq!(seen.0, [PIECE, PIECE, PIECE, PIECE, 7 + 5 + 1000]);
        assert!(seen.1 == parts.concat());
    }
}
