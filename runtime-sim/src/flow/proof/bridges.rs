//! Edges of a graph that lie on a cycle.

/// By edge, given as its two nodes: whether it lies on a cycle. Edges between the same nodes are a cycle.
pub fn on_cycles(nodes: usize, edges: &[(u32, u32)]) -> Vec<bool> {
    let mut first = vec![0u32; nodes + 1];
    for (a, b) in edges {
        first[*a as usize + 1] += 1;
        first[*b as usize + 1] += 1;
    }
    (0..nodes).for_each(|n| first[n + 1] += first[n]);
    let (mut next, mut at) = (first.clone(), vec![(0u32, 0u32); 2 * edges.len()]);
    for (n, (a, b)) in (0u32..).zip(edges) {
        for (from, to) in [(*a, *b), (*b, *a)] {
            at[next[from as usize] as usize] = (to, n);
            next[from as usize] += 1;
        }
    }
    // An edge of the tree of first visits is on no cycle if nothing behind it leads back to before it.
    const NEW: u32 = u32::MAX;
    let (mut found, mut lowest) = (vec![NEW; nodes], vec![NEW; nodes]);
    let mut cyclic = vec![true; edges.len()];
    let mut count = 0;
    for root in 0..nodes as u32 {
        if found[root as usize] != NEW {
            continue;
        }
        let mut open: Vec<(u32, u32, u32)> = vec![(root, NEW, first[root as usize])];
        (found[root as usize], lowest[root as usize]) = (count, count);
        count += 1;
        while let Some((node, by, place)) = open.last_mut() {
            let (node, by) = (*node as usize, *by);
            if *place < first[node + 1] {
                let (to, edge) = at[*place as usize];
                *place += 1;
                if edge == by {
                    continue;
                }
                if found[to as usize] == NEW {
                    (found[to as usize], lowest[to as usize]) = (count, count);
                    count += 1;
                    open.push((to, edge, first[to as usize]));
                } else {
                    lowest[node] = lowest[node].min(found[to as usize]);
                }
            } else {
                open.pop();
                if let Some((above, ..)) = open.last() {
                    let above = *above as usize;
                    lowest[above] = lowest[above].min(lowest[node]);
                    cyclic[by as usize] = lowest[node] <= found[above];
                }
            }
        }
    }
    cyclic
}

#[cfg(test)]
mod tests {
    use super::on_cycles;

    #[test]
    fn bridges_and_leaves_are_on_no_cycle() {
        // A triangle, a bridge to two nodes joined twice, and a leaf.
        let edges = [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 3), (4, 5)];
        assert_eq!(on_cycles(6, &edges), [true, true, true, false, true, true, false]);
        assert!(on_cycles(3, &[]).is_empty());
    }
}
