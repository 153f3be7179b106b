//! Attention's derivatives against those computed on the host in f64: one block and many, remainders, several
//! sequences, shared keys, ALiBi and windows.

use super::*;

/// Gradients of queries, keys and values.
fn derivatives(q: &Matrix, k: &Matrix, v: &Matrix, dy: &Matrix, half: &Half, length: usize) -> [Matrix; 3] {
    let (dim, ways) = (half.dim as usize, (half.heads / half.kv) as usize);
    let scale = 1.0 / f64::from(half.dim).sqrt();
    let mut sums = [q, k, v].map(|m| vec![0f64; m.data.len()]);
    for token in 0..q.rows().count() {
        let first = token / length * length;
        for head in 0..half.heads as usize {
            let of_query = |m: &Matrix| m.data[token * m.columns + head * dim..][..dim].to_vec();
            let at = |t: usize| t * k.columns + head / ways * dim;
            let (query, dy) = (of_query(q), of_query(dy));
            let dot = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            let slope = half.slopes.get(head).copied().unwrap_or(0.0);
            let seen: Vec<usize> =
                (first..=token).filter(|t| half.window.is_none_or(|w| token - t < w as usize)).collect();
            let score = |t: &usize| {
                scale * dot(&query, &k.data[at(*t)..][..dim]) + slope * (*t as f64 - token as f64)
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            let shares: Vec<f64> = scores.iter().map(|s| (s - most).exp() / sum).collect();
            let dp: Vec<f64> = seen.iter().map(|t| dot(&dy, &v.data[at(*t)..][..dim])).collect();
            let delta: f64 = shares.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for ((t, p), dp) in seen.iter().zip(&shares).zip(&dp) {
                let ds = p * (dp - delta) * scale;
                for i in 0..dim {
                    sums[0][token * q.columns + head * dim + i] += ds * f64::from(k.data[at(*t) + i]);
                    sums[1][at(*t) + i] += ds * f64::from(query[i]);
                    sums[2][at(*t) + i] += p * f64::from(dy[i]);
                }
            }
        }
    }
    let columns = [q.columns, k.columns, v.columns];
    let mut all = sums
        .into_iter()
        .zip(columns)
        .map(|(sums, columns)| Matrix { columns, data: sums.into_iter().map(|v| v as f32).collect() });
    [(); 3].map(|()| all.next().unwrap())
}

fn heads_of(width: u32, half: &Half) -> Heads {
    let blocks = (1..=half.kv.min(width)).rev().find(|b| half.kv.is_multiple_of(*b)).unwrap();
    let (columns, kv, ways) = (width / blocks, half.kv / blocks, half.heads / half.kv);
    Heads { blocks, columns, kv, ways, dim: half.dim }
}

fn case(width: u32, height: u32, tokens: Tokens, half: Half) {
    let (t, qn, kn) =
        (tokens.total() as usize, (half.heads * half.dim) as usize, (half.kv * half.dim) as usize);
    let noises = [(51, qn), (52, kn), (53, kn), (54, qn)].map(|(seed, n)| Matrix::noise(seed, t, n));
    let [q, k, v, dy] = &noises;
    let (queries, keys) = (Layout::HeadTokens { queries: true }, Layout::HeadTokens { queries: false });
    let names = ["q", "k", "v", "dy", "dq", "dk", "dv"].map(str::to_owned);
    let [query, key, value, gradient, query_dx, key_dx, value_dx] = names;
    let scale = 1.0 / f64::from(half.dim).sqrt();
    let (slopes, window) = (half.slopes.clone(), half.window);
    let attention =
        AttentionDx { query, key, value, gradient, query_dx, key_dx, value_dx, scale, slopes, window };
    let input = |value: &str| {
        let (tensor, source, path) = (value.to_owned(), Source::Caller, Path::Resident);
        op(&format!("load.{value}"), OpKind::Input { value: value.into(), tensor, source, path })
    };
    let gather = |value: &str| {
        let (input, output) = (format!("d{value}"), format!("{value}.columns"));
        op(&format!("gather.{value}"), OpKind::Gather(Gather { input, output }))
    };
    let store = |value: &str| {
        let (value, tensor, path) = (format!("{value}.columns"), format!("d{value}"), Path::Resident);
        op(&format!("store.{value}"), OpKind::Output { value, tensor, path })
    };
    let ops = vec![
        input("q"),
        input("k"),
        input("v"),
        input("dy"),
        op("attention.dx", OpKind::AttentionDx(attention)),
        gather("q"),
        gather("k"),
        gather("v"),
        store("q"),
        store("k"),
        store("v"),
    ];
    let (by_query, by_key) = (Layout::HeadColumns { queries: true }, Layout::HeadColumns { queries: false });
    let values = [
        ("q", queries),
        ("k", keys),
        ("v", keys),
        ("dy", queries),
        ("dq", queries),
        ("dk", keys),
        ("dv", keys),
        ("q.columns", by_query),
        ("k.columns", by_key),
        ("v.columns", by_key),
    ];
    let heads = Some(heads_of(width, &half));
    let placed = Placed { heads, ..placed(width, height, tokens, &values, ops) };
    let given = [("q", &q.data[..]), ("k", &k.data), ("v", &v.data), ("dy", &dy.data)];
    let (found, _) = run_all(&placed, &given, &Parameters::new(), &[]);
    let expected = derivatives(q, k, v, dy, &half, tokens.length as usize);
    for (name, expected) in ["dq", "dk", "dv"].into_iter().zip(&expected) {
        let largest = expected.data.iter().fold(0f32, |most, v| most.max(v.abs()));
        for (i, (a, b)) in found[name].iter().zip(&expected.data).enumerate() {
            assert!((a - b).abs() <= 2e-5 * largest, "{name} {i}: {a} instead of {b}, largest {largest}");
        }
    }
}

fn sequences(sequences: u32, length: u32, rows: u32) -> Tokens {
    Tokens { sequences, length, rows }
}

#[test]
fn one_block_over_the_whole_row() {
    case(4, 1, tokens(4, 1), Half::new(1, 1, 4, Pairing::Half));
    case(3, 2, tokens(9, 2), Half::new(1, 1, 4, Pairing::Half));
}

#[test]
fn blocks_of_one_column() {
    case(4, 3, tokens(8, 3), Half::new(4, 4, 4, Pairing::Half));
    case(3, 4, tokens(9, 4), Half::new(4, 4, 6, Pairing::Half));
}

#[test]
fn spare_columns_uneven_tiles_and_several_sequences() {
    case(8, 4, tokens(22, 4), Half::new(2, 2, 6, Pairing::Half));
    case(11, 7, sequences(2, 17, 3), Half::new(2, 2, 8, Pairing::Half));
    case(16, 16, sequences(4, 23, 4), Half::new(4, 4, 16, Pairing::Half));
    case(16, 4, tokens(9, 4), Half::new(2, 2, 5, Pairing::Half));
}

#[test]
fn query_heads_that_share_keys_and_values() {
    case(8, 4, tokens(21, 4), Half::new(8, 2, 4, Pairing::Half));
    case(3, 2, tokens(7, 2), Half::new(8, 4, 4, Pairing::Half));
}

#[test]
fn alibi_and_windows() {
    let slopes = kernel::attention::distance::slopes(4, 1.0);
    let half = || Half::new(4, 2, 6, Pairing::Half);
    case(8, 4, tokens(22, 4), Half { slopes: slopes.clone(), ..half() });
    case(11, 7, sequences(2, 17, 3), Half { slopes, window: Some(5), ..half() });
    case(2, 3, tokens(14, 3), Half { window: Some(4), ..half() });
}
