//! In which order pieces are priced: circles of pieces that wait for each other as one, each after all that it waits for.

/// Edges of a graph, by node.
pub struct Edges {
    first: Vec<u32>,
    to: Vec<u32>,
}

impl Edges {
    /// `count` nodes and the edges between them.
    pub fn new(count: usize, mut edges: Vec<(u32, u32)>) -> Edges {
        edges.sort_unstable();
        edges.dedup();
        let mut first = vec![0; count + 1];
        edges.iter().for_each(|(from, _)| first[*from as usize + 1] += 1);
        for node in 0..count {
            first[node + 1] += first[node];
        }
        Edges { first, to: edges.into_iter().map(|(_, to)| to).collect() }
    }

    /// Where the edges of a node lead.
    pub fn of(&self, node: u32) -> &[u32] {
        &self.to[self.first[node as usize] as usize..self.first[node as usize + 1] as usize]
    }

    fn count(&self) -> usize {
        self.first.len() - 1
    }
}

/// State of Tarjan's search for strongly connected components, without recursion.
struct Search<'e> {
    edges: &'e Edges,
    /// By node: 1 + its number in the order of discovery; 0 while it is unknown.
    found: Vec<u32>,
    /// By node: the earliest open node that it leads to.
    low: Vec<u32>,
    open: Vec<u32>,
    is_open: Vec<bool>,
    groups: Vec<Vec<u32>>,
    next: u32,
}

/// Groups of nodes that lead to each other, each group after all that lead to it.
pub fn groups(edges: &Edges) -> Vec<Vec<u32>> {
    let count = edges.count();
    let mut search = Search {
        edges,
        found: vec![0; count],
        low: vec![0; count],
        open: Vec::new(),
        is_open: vec![false; count],
        groups: Vec::new(),
        next: 1,
    };
    for node in 0..count as u32 {
        if search.found[node as usize] == 0 {
            search.from(node);
        }
    }
    search.groups.reverse();
    search.groups
}

impl Search<'_> {
    fn from(&mut self, root: u32) {
        let mut path: Vec<(u32, usize)> = Vec::new();
        self.enter(root, &mut path);
        while let Some((node, next)) = path.last_mut() {
            let node = *node;
            if let Some(&to) = self.edges.of(node).get(*next) {
                *next += 1;
                if self.found[to as usize] == 0 {
                    self.enter(to, &mut path);
                } else if self.is_open[to as usize] {
                    self.low[node as usize] = self.low[node as usize].min(self.found[to as usize]);
                }
                continue;
            }
            path.pop();
            if let Some((before, _)) = path.last() {
                self.low[*before as usize] = self.low[*before as usize].min(self.low[node as usize]);
            }
            if self.low[node as usize] == self.found[node as usize] {
                self.close(node);
            }
        }
    }

    fn enter(&mut self, node: u32, path: &mut Vec<(u32, usize)>) {
        (self.found[node as usize], self.low[node as usize]) = (self.next, self.next);
        self.next += 1;
        self.open.push(node);
        self.is_open[node as usize] = true;
        path.push((node, 0));
    }

    fn close(&mut self, root: u32) {
        let mut group = Vec::new();
        while let Some(node) = self.open.pop() {
            self.is_open[node as usize] = false;
            group.push(node);
            if node == root {
                break;
            }
        }
        group.sort_unstable();
        self.groups.push(group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_one_group_behind_what_they_wait_for() {
        let edges = Edges::new(6, vec![(5, 1), (1, 2), (2, 3), (3, 1), (3, 0), (0, 4), (1, 2)]);
        assert_eq!(groups(&edges), [vec![5], vec![1, 2, 3], vec![0], vec![4]]);
        assert_eq!(groups(&Edges::new(0, vec![])), Vec::<Vec<u32>>::new());
    }
}
