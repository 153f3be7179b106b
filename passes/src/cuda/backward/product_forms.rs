//! The forms of products of a backward pass, and which of them is taken.
//!
//! | form | what it is | for |
//! |---|---|---|
//! | `tiles-MxN` | tensor cores on tiles through `mma.sync` | bf16, rows that begin on 16 bytes |
//! | `split-N` | tiles of 128 x 128 on N parts of the depth, joined by a second kernel in one order | the same, by weights |
//! | `hopper-MxN` | the copy engine and `wgmma` | the same on `sm_90a`, measured or asked for |
//! | `single` | tiles without tensor cores | everything |
//! | `library` | cuBLASLt | nothing but a residual or a gradient behind the product |
use super::product::Product;
use crate::cuda::Options;
use crate::cuda::matmul_forms::{HOPPER, HopperTile, SMALL, choose};
use crate::cuda::spec::KernelSpec;
use lapidary_runtime_gpu::program::{Dtype, FormChoice};

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Form {
    /// Tensor cores on tiles.
    Tiles(Tile),
    /// The same on so many parts of the depth.
    Split(u64),
    /// With Hopper's instructions.
    Hopper(HopperTile),
    /// Without tensor cores.
    Single,
    /// The vendor's library.
    Library,
}

/// A block's part; two warps share its rows, each warp has half of them and 64 columns, or half where there are fewer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tile {
    pub bm: u64,
    pub bn: u64,
    pub warps_n: u64,
    /// Blocks that fit on a multiprocessor.
    pub resident: u64,
}

const WIDE: Tile = Tile { bm: 128, bn: 256, warps_n: 4, resident: 1 };
/// The tile of products whose depth is split.
pub(super) const LARGE: Tile = Tile { bm: 128, bn: 128, warps_n: 2, resident: 2 };
const SMALL_TILE: Tile = Tile { bm: 64, bn: 64, warps_n: 2, resident: 4 };

/// Parts of a depth.
const SPLITS: [u64; 3] = [2, 4, 8];
/// The least depth that is worth a part.
const DEPTH_OF_PART: u64 = 256;

impl Form {
    /// The name that programs, measurements and callers use.
    pub(super) fn name(self) -> String {
        match self {
            Form::Tiles(tile) => format!("tiles-{}x{}", tile.bm, tile.bn),
            Form::Split(parts) => format!("split-{parts}"),
            Form::Hopper(tile) => format!("hopper-{}x{}", tile.bm, tile.bn),
            Form::Single => "single".into(),
            Form::Library => "library".into(),
        }
    }
}

/// Every form that can compute a product. `plain`: the library can do what stands behind it.
pub(super) fn forms(product: &Product, plain: bool, options: &Options) -> Vec<(String, Form)> {
    let mut forms = Vec::new();
    if product.dtype == Dtype::Bf16 && product.is_aligned() {
        forms.extend([WIDE, LARGE, SMALL_TILE].map(Form::Tiles));
        if product.of_weights() {
            let deep = |parts: &&u64| product.mnk[2] >= *parts * DEPTH_OF_PART;
            forms.extend(SPLITS.iter().filter(deep).copied().map(Form::Split));
            forms.extend(HOPPER.iter().filter(|_| options.hopper).copied().map(Form::Hopper));
        }
    } else {
        forms.push(Form::Single);
    }
    forms.extend((plain && product.mnk[0] > SMALL).then_some(Form::Library));
    forms.into_iter().map(|form| (form.name(), form)).collect()
}

/// The form of a product, and how it was chosen: by rule the library where it can, large tiles where they fill the machine,
/// else small ones.
pub(super) fn choose_form(
    spec: &KernelSpec,
    product: &Product,
    plain: bool,
    options: &Options,
) -> (Form, FormChoice) {
    let possible = forms(product, plain, options);
    let [m, n, k] = product.mnk;
    let large = m.div_ceil(128) * n.div_ceil(128) * product.batch * product.heads >= options.processors;
    let rule = match possible.iter().find(|(_, form)| *form == Form::Library && options.library) {
        Some(_) => Form::Library,
        None if possible[0].1 == Form::Single => Form::Single,
        None if large => Form::Tiles(LARGE),
        None => Form::Tiles(SMALL_TILE),
    };
    let times = if product.of_weights() {
        String::new()
    } else {
        format!(" for {} x {}", product.batch, product.heads)
    };
    let key = format!("{m}x{n}x{k} {}{times}: {}", product.dtype.word(), spec.op_words().join(", "));
    choose(&possible, key, (rule.name(), rule), options)
}
