//! Small tokenizers, of the two kinds that published models have.

use serde_json::{Map, Value, json};

/// Tokens as `<0x0A>` for what is in no vocabulary, and `▁` for spaces: SentencePiece's kind, as Amber and
/// CrystalCoder have it. Special tokens follow the vocabulary.
pub fn byte_fallback_json(special: &[&str]) -> String {
    let mut vocab = Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.insert(token, id.into());
    };
    ["<unk>", "<s>", "</s>"].into_iter().for_each(|token| add(token.into()));
    (0..=255u8).for_each(|byte| add(format!("<0x{byte:02X}>")));
    "▁helowrdtspac".chars().for_each(|c| add(c.to_string()));
    let merges = [("h", "e"), ("he", "l"), ("hel", "l"), ("hell", "o"), ("▁", "hello"), ("▁", "w")];
    merges.iter().for_each(|(a, b)| add(format!("{a}{b}")));
    let first = vocab.len();
    let named = ["<unk>", "<s>", "</s>"].into_iter().chain(special.iter().copied()).enumerate();
    let id = |i: usize| if i < 3 { i } else { first + i - 3 };
    let added: Vec<Value> = named.map(|(i, token)| added(id(i), token)).collect();
    json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab,
            "merges": merges.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>(),
        },
    })
    .to_string()
}

fn added(id: usize, token: &str) -> Value {
    json!({
        "id": id, "content": token, "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    })
}

/// One token per byte of UTF-8, spelled as GPT-2 spells them.
pub fn byte_level_json() -> String {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = 256u32..;
    let spell =
        |byte: u8| if plain(byte) { Some(char::from(byte)) } else { others.next().and_then(char::from_u32) };
    let vocab: Map<String, Value> =
        (0..=255u8).map(spell).enumerate().filter_map(|(id, c)| Some((c?.to_string(), id.into()))).collect();
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
    .to_string()
}
