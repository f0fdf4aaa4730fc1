//! Names that LMCache 0.5.6 itself gives to keys, against ours.

use saltern::ObjectKey;
use saltern::layout::{Decoder, Layout, NameError, wire};
use serde_json::Value;

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_else(|| panic!("{field} is a string in {row}"))
}

fn number(row: &Value, field: &str) -> u32 {
    row[field].as_u64().and_then(|number| number.try_into().ok()).unwrap_or_else(|| panic!("{field} in {row}"))
}

fn key(row: &Value) -> ObjectKey {
    let hash = text(row, "chunk_hash");
    let hash: Vec<u8> =
        (0..hash.len()).step_by(2).map(|at| u8::from_str_radix(&hash[at..at + 2], 16).unwrap()).collect();
    let (rank, group) = (number(row, "kv_rank"), number(row, "object_group_id"));
    ObjectKey::new(text(row, "model_name"), rank, group, &hash, text(row, "cache_salt")).unwrap()
}

#[test]
fn names_are_those_of_lmcache() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/lmcache-0.5.6-names.json")).unwrap();
    let rows = fixture["keys"].as_array().unwrap();
    assert!(rows.len() > 30);
    let layouts = [(Layout::Fs, "fs"), (Layout::Nixl, "nixl"), (Layout::NixlSharded, "nixl_sharded")];
    let mut decoders = layouts.map(|(layout, _)| Decoder::new(layout));
    let mut collisions = Vec::new();
    for row in rows {
        let key = key(row);
        for ((layout, field), decoder) in layouts.into_iter().zip(&mut decoders) {
            let expected = text(row, field);
            // LMCache writes every key; where it would not get the same key back, we refuse.
            let round_trip = match layout.encode(&key) {
                Ok(name) => {
                    assert_eq!(name, expected);
                    assert_eq!(layout.decode(expected).as_ref(), Ok(&key));
                    true
                }
                Err(NameError::Collision { other, name, .. }) => {
                    assert_eq!(name, expected);
                    assert_eq!(layout.decode(expected), Ok(*other));
                    collisions.push((layout, key.model_name().to_owned()));
                    false
                }
                Err(error) => panic!("{layout}: {error}"),
            };
            assert_eq!(decoder.decode(expected), layout.decode(expected));
            if layout == Layout::Fs {
                assert_eq!(round_trip, row["fs_round_trip"].as_bool().unwrap(), "{row}");
            }
        }
        assert_eq!(wire::encode(&key), text(row, "wire"));
        assert_eq!(wire::decode(text(row, "wire")), Ok(key));
    }
    collisions.sort_by_key(|(layout, _)| layout.name());
    collisions.dedup();
    let expected = [
        (Layout::Fs, "a-SEP-b"),
        (Layout::Fs, "x-SEP/y"),
        (Layout::Nixl, "a--b"),
        (Layout::Nixl, "a-/b"),
        (Layout::NixlSharded, "a--b"),
        (Layout::NixlSharded, "a-/b"),
    ];
    assert_eq!(collisions, expected.map(|(layout, model)| (layout, model.to_owned())));
}
