//! What a token sequence should have continued with.

/// The label of a position that does not count.
pub const IGNORED: i32 = -1;

/// Labels of a sequence that is its own continuation: each position's next id; the last one does not count.
pub fn next_tokens(ids: &[u32]) -> Vec<i32> {
    let next = ids.iter().skip(1).map(|id| i32::try_from(*id).unwrap_or(IGNORED));
    next.chain(std::iter::once(IGNORED)).take(ids.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::next_tokens;

    #[test]
    fn the_last_position_has_no_label() {
        assert_eq!(next_tokens(&[5, 7, 9]), [7, 9, -1]);
        assert_eq!(next_tokens(&[5]), [-1]);
        assert_eq!(next_tokens(&[]), [] as [i32; 0]);
    }
}
