//! Properties and tables over all layouts.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::key::SALT_FORBIDDEN;

fn key(model: &str, rank: u32, group: u32, hash: &[u8], salt: &str) -> ObjectKey {
    ObjectKey::new(model, rank, group, hash, salt).unwrap()
}

/// Key, `fs`, `fs3`, `nixl`, `nixl3`, `nixl-sharded`; then both wire forms.
type Row<'a> = (ObjectKey, [&'a str; 5], [&'a str; 2]);

#[test]
fn names_are_as_documented() {
    let long = "ab".repeat(32);
    let rows: [Row<'_>; 7] = [
        (
            key("meta-llama/Llama-3.1-8B", 0x0201_0201, 0, &[0xab, 0xcd, 0xef], ""),
            [
                "meta-llama-SEP-Llama-3.1-8B@0x02010201@0@abcdef.data",
                "meta-llama-SEP-Llama-3.1-8B@0x02010201@abcdef.data",
                "meta-llama--Llama-3.1-8B_02010201_0_abcdef.bin",
                "meta-llama--Llama-3.1-8B_02010201_abcdef.bin",
                "ab/cd/meta-llama--Llama-3.1-8B_02010201_0_abcdef.bin",
            ],
            ["meta-llama/Llama-3.1-8B@02010201@0@abcdef", "meta-llama/Llama-3.1-8B@02010201@abcdef"],
        ),
        (
            key("m_1", 1, 0, &[0xab], "a.data"),
            [
                "m_1@0x00000001@0@ab@a.data.data",
                "m_1@0x00000001@ab@a.data.data",
                "m_1_00000001_0_ab@a.data.bin",
                "m_1_00000001_ab@a.data.bin",
                "ab/m_1_00000001_0_ab@a.data.bin",
            ],
            ["m_1@00000001@0@ab@a.data", "m_1@00000001@ab@a.data"],
        ),
        (
            key("a/b/c", u32::MAX, 0, &[0, 1], "x.data.tmp.1_2"),
            [
                "a-SEP-b-SEP-c@0xffffffff@0@0001@x.data.tmp.1_2.data",
                "a-SEP-b-SEP-c@0xffffffff@0001@x.data.tmp.1_2.data",
                "a--b--c_ffffffff_0_0001@x.data.tmp.1_2.bin",
                "a--b--c_ffffffff_0001@x.data.tmp.1_2.bin",
                "00/01/a--b--c_ffffffff_0_0001@x.data.tmp.1_2.bin",
            ],
            ["a/b/c@ffffffff@0@0001@x.data.tmp.1_2", "a/b/c@ffffffff@0001@x.data.tmp.1_2"],
        ),
        (
            key("..", 0, 0, &[0xff; 2], "é\n"),
            [
                "..@0x00000000@0@ffff@é\n.data",
                "..@0x00000000@ffff@é\n.data",
                ".._00000000_0_ffff@é\n.bin",
                ".._00000000_ffff@é\n.bin",
                "ff/ff/.._00000000_0_ffff@é\n.bin",
            ],
            ["..@00000000@0@ffff@é\n", "..@00000000@ffff@é\n"],
        ),
        (
            key("../x", 0, 0, &[0xff; 2], ".."),
            [
                "..-SEP-x@0x00000000@0@ffff@...data",
                "..-SEP-x@0x00000000@ffff@...data",
                "..--x_00000000_0_ffff@...bin",
                "..--x_00000000_ffff@...bin",
                "ff/ff/..--x_00000000_0_ffff@...bin",
            ],
            ["../x@00000000@0@ffff@..", "../x@00000000@ffff@.."],
        ),
        (
            key("/", 0, 0, &[0xab; 32], ""),
            [
                &format!("-SEP-@0x00000000@0@{long}.data"),
                &format!("-SEP-@0x00000000@{long}.data"),
                &format!("--_00000000_0_{long}.bin"),
                &format!("--_00000000_{long}.bin"),
                &format!("ab/ab/--_00000000_0_{long}.bin"),
            ],
            [&format!("/@00000000@0@{long}"), &format!("/@00000000@{long}")],
        ),
        (
            key(".saltern", 0, 0, &[1, 2], ""),
            [
                ".saltern@0x00000000@0@0102.data",
                ".saltern@0x00000000@0102.data",
                ".saltern_00000000_0_0102.bin",
                ".saltern_00000000_0102.bin",
                "01/02/.saltern_00000000_0_0102.bin",
            ],
            [".saltern@00000000@0@0102", ".saltern@00000000@0102"],
        ),
    ];
    for (key, names, [grouped, older]) in rows {
        for (layout, name) in Layout::ALL.into_iter().zip(names) {
            assert_eq!(layout.encode(&key).as_deref(), Ok(name), "{layout}");
            assert_eq!(layout.decode(name).as_ref(), Ok(&key), "{layout} {name:?}");
        }
        assert_eq!(wire::encode(&key), grouped);
        assert_eq!(wire::decode(grouped).as_ref(), Ok(&key));
        assert_eq!(wire::encode3(&key).as_deref(), Ok(older));
        assert_eq!(wire::decode3(older).as_ref(), Ok(&key));
    }
}

#[test]
fn groups_are_written_in_plain_hex() {
    for (group, text) in [(1, "1"), (10, "a"), (16, "10"), (0xabc_0def, "abc0def"), (u32::MAX, "ffffffff")] {
        let key = key("m", 0, group, &[0xab, 0xcd], "s");
        assert_eq!(Layout::Fs.encode(&key).unwrap(), format!("m@0x00000000@{text}@abcd@s.data"));
        assert_eq!(Layout::Nixl.encode(&key).unwrap(), format!("m_00000000_{text}_abcd@s.bin"));
        assert_eq!(wire::encode(&key), format!("m@00000000@{text}@abcd@s"));
        for layout in [Layout::Fs3, Layout::Nixl3] {
            assert_eq!(layout.encode(&key), Err(NameError::GroupNotEncodable { group }));
        }
        assert_eq!(wire::encode3(&key), Err(NameError::GroupNotEncodable { group }));
    }
}

#[test]
fn foreign_names_are_refused_with_a_reason() {
    use Layout::{Fs, Fs3, Nixl, Nixl3, NixlSharded};
    let rank = |found: &str| NameError::Rank { found: found.into() };
    let group = |found: &str| NameError::Group { found: found.into() };
    let hash = |found: &str| NameError::Hash { found: found.into() };
    let shard = |expected: &str| NameError::WrongShard { expected: expected.into() };
    let canonical = |canonical: &str| NameError::NotCanonical { canonical: canonical.into() };
    let rows = [
        (Fs, "", NameError::Extension { expected: ".data" }),
        (Fs, "m@0x00000001@0@ab.data.tmp.1", NameError::Extension { expected: ".data" }),
        (Fs, "m@0x00000001@0@ab@s.DATA", NameError::Extension { expected: ".data" }),
        (Fs, ".data", NameError::Fields { expected: "<model>@0x<rank>@<group>@<hash>[@<salt>].data" }),
        (Fs, "m@0x00000001@ab.data", NameError::Fields { expected: "<model>@0x<rank>@<group>@<hash>[@<salt>].data" }),
        (Fs3, "m@0x00000001@0@ab@s.data", NameError::Fields { expected: "<model>@0x<rank>@<hash>[@<salt>].data" }),
        (Fs, "m@00000001@0@ab.data", rank("00000001")),
        (Fs, "m@0x1@0@ab.data", rank("0x1")),
        (Fs, "m@0X00000001@0@ab.data", rank("0X00000001")),
        (Fs, "m@0x0000000A@0@ab.data", rank("0x0000000A")),
        (Fs, "m@0x000000001@0@ab.data", rank("0x000000001")),
        (Fs, "m@0x+0000001@0@ab.data", rank("0x+0000001")),
        (Fs, "m@0x00000001@@ab.data", group("")),
        (Fs, "m@0x00000001@00@ab.data", group("00")),
        (Fs, "m@0x00000001@01@ab.data", group("01")),
        (Fs, "m@0x00000001@A@ab.data", group("A")),
        (Fs, "m@0x00000001@-1@ab.data", group("-1")),
        (Fs, "m@0x00000001@100000000@ab.data", group("100000000")),
        (Fs, "m@0x00000001@0@a.data", hash("a")),
        (Fs, "m@0x00000001@0@AB.data", hash("AB")),
        (Fs, "m@0x00000001@0@ab cd.data", hash("ab cd")),
        (Fs, "m@0x00000001@0@é.data", hash("é")),
        (Fs3, "m@0x00000001@0@ab.data", hash("0")),
        (Fs, "m@0x00000001@0@.data", KeyError::HashEmpty.into()),
        (Fs, "@0x00000001@0@ab.data", KeyError::ModelEmpty.into()),
        (Fs, "m\0@0x00000001@0@ab.data", KeyError::ModelForbidden { model: "m\0".into(), found: '\0' }.into()),
        (Fs, "m@0x00000001@0@ab@\\.data", KeyError::SaltForbidden { found: '\\' }.into()),
        (Fs, "m@0x00000001@0@ab@a/b.data", KeyError::SaltForbidden { found: '/' }.into()),
        (Fs, "a/m@0x00000001@0@ab.data", NameError::HasDirectory),
        (Fs, "m@0x00000001@0@ab@.data", canonical("m@0x00000001@0@ab.data")),
        (Nixl, "m_00000001_0_ab.data", NameError::Extension { expected: ".bin" }),
        (Nixl, "m.bin", NameError::Fields { expected: "<model>_<rank>_<group>_<hash>[@<salt>].bin" }),
        (Nixl, "00000001_0_ab.bin", NameError::Fields { expected: "<model>_<rank>_<group>_<hash>[@<salt>].bin" }),
        (Nixl3, "00000001_ab.bin", NameError::Fields { expected: "<model>_<rank>_<hash>[@<salt>].bin" }),
        (Nixl3, "m_00000001_ab@s@t.bin", NameError::Fields { expected: "<model>_<rank>_<hash>[@<salt>].bin" }),
        (Nixl, "_00000001_0_ab.bin", KeyError::ModelEmpty.into()),
        (Nixl, "m_0x00000001_0_ab.bin", rank("0x00000001")),
        (Nixl, "m_1_0_ab.bin", rank("1")),
        (Nixl, "m_00000001_ab.bin", group("00000001")),
        (Nixl3, "m_00000001_0_ab.bin", rank("0")),
        (Nixl, "m_00000001_0_abc.bin", hash("abc")),
        (Nixl, "m_00000001_0_ab@.bin", canonical("m_00000001_0_ab.bin")),
        (Nixl, "ab/cd/m_00000001_0_abcd.bin", NameError::HasDirectory),
        (NixlSharded, "m_00000001_0_abcd.bin", shard("ab/cd/")),
        (NixlSharded, "/m_00000001_0_abcd.bin", shard("ab/cd/")),
        (NixlSharded, "ab/m_00000001_0_abcd.bin", shard("ab/cd/")),
        (NixlSharded, "ab/ce/m_00000001_0_abcd.bin", shard("ab/cd/")),
        (NixlSharded, "ab/cd/ef/m_00000001_0_abcdef.bin", shard("ab/cd/")),
        (NixlSharded, "/ab/cd/m_00000001_0_abcdef.bin", shard("ab/cd/")),
        (NixlSharded, "ab//cd/m_00000001_0_abcdef.bin", shard("ab/cd/")),
        (NixlSharded, "ab/cd/m_00000001_0_ab.bin", shard("ab/")),
        (NixlSharded, "ab//m_00000001_0_ab.bin", shard("ab/")),
    ];
    for (layout, name, error) in rows {
        assert_eq!(layout.decode(name), Err(error.clone()), "{layout} {name:?}");
        assert_eq!(Decoder::new(layout).decode(name), Err(error), "{layout} {name:?}");
    }
    let salt = "s".repeat(129);
    assert_eq!(
        Layout::Fs.decode(&format!("m@0x00000001@0@ab@{salt}.data")),
        Err(KeyError::SaltTooLong { chars: 129 }.into())
    );
    assert_eq!(
        wire::decode(&format!("m@00000001@0@{}", "0".repeat(256))),
        Err(KeyError::HashTooLong { bytes: 128 }.into())
    );
    assert_eq!(wire::decode("m@0x00000001@0@ab"), Err(rank("0x00000001")));
    assert_eq!(wire::decode("m@00000001@0@ab@"), Err(canonical("m@00000001@0@ab")));
}

#[test]
fn colliding_models_are_refused_and_name_the_other() {
    let rows = [
        (Layout::Fs, "a-SEP-b", "a/b"),
        (Layout::Fs, "x-SEP/y", "x/SEP-y"),
        (Layout::Fs, "-SEP/-", "/SEP--"),
        (Layout::Fs3, "-SEP-", "/"),
        (Layout::Nixl, "a--b", "a/b"),
        (Layout::Nixl, "a-/b", "a/-b"),
        (Layout::Nixl3, "a---b", "a/-b"),
        (Layout::NixlSharded, "----", "//"),
    ];
    for (layout, model, other) in rows {
        let [key, other] = [model, other].map(|model| key(model, 1, 0, &[1, 2], "s"));
        let name = layout.encode(&other).unwrap();
        let mut out = "left over".to_owned();
        let error = layout.encode_into(&key, &mut out).unwrap_err();
        let message = error.to_string();
        for part in [key.to_string(), other.to_string(), name.clone()] {
            assert!(message.contains(&part), "{message}");
        }
        assert_eq!(error, NameError::Collision { key: key.into(), other: other.into(), name });
        assert_eq!(out, "");
    }
    // What only looks dangerous is as LMCache writes it.
    for (layout, model) in [
        (Layout::Fs, "a--b"),
        (Layout::Fs, "x/SEP-y"),
        (Layout::Fs, "SEP/-SEP"),
        (Layout::Nixl, "a-SEP-b"),
        (Layout::Nixl, "a/-b"),
        (Layout::Nixl, "-a-"),
    ] {
        assert!(layout.encode(&key(model, 1, 0, &[1], "")).is_ok(), "{layout} {model}");
    }
}

#[test]
fn names_end_at_name_max() {
    for layout in Layout::ALL {
        let empty = layout.encode(&key("m", 0, 0, &[1, 2], "")).unwrap();
        let file = |path: &str| path.rsplit('/').next().unwrap().len();
        let room = NAME_MAX - file(&empty) + 1;
        let fits = key(&"m".repeat(room), 0, 0, &[1, 2], "");
        let name = layout.encode(&fits).unwrap();
        assert_eq!(file(&name), NAME_MAX);
        assert_eq!(layout.decode(&name), Ok(fits));

        let over = key(&"m".repeat(room + 1), 0, 0, &[1, 2], "");
        let Err(NameError::TooLong { bytes: 256, name }) = layout.encode(&over) else { panic!("{layout}") };
        assert_eq!(name.len(), 256);
        let directory = if layout.is_sharded() { "01/02/" } else { "" };
        assert_eq!(layout.decode(&format!("{directory}{name}")), Err(NameError::TooLong { bytes: 256, name }));
    }
    // Characters are not bytes, and a slash takes more than one.
    assert!(matches!(
        Layout::Fs.encode(&key("m", 0, 0, &[1; 32], &"é".repeat(128))),
        Err(NameError::TooLong { bytes: 341, .. })
    ));
    assert!(matches!(
        Layout::Fs.encode(&key(&"/".repeat(48), 0, 0, &[1], "")),
        Err(NameError::TooLong { bytes: 261, .. })
    ));
}

#[test]
fn layouts_have_names() {
    for layout in Layout::ALL {
        assert_eq!(layout.name().parse(), Ok(layout));
        assert_eq!(layout.to_string(), layout.name());
        let json: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
            serde::de::IntoDeserializer::into_deserializer(layout.name());
        assert_eq!(Layout::deserialize(json), Ok(layout));
    }
    let error = "FS".parse::<Layout>().unwrap_err();
    assert_eq!(error.to_string(), "unknown layout \"FS\"; known are fs, fs3, nixl, nixl3, nixl-sharded");
}

/// All models of up to five pieces, with all that could blur the border to the next field: no two keys have
/// one name, and each name is that of its key. Shorter and more certain than drawing pairs at random.
#[test]
fn no_two_keys_share_a_name() {
    let check = |pieces: &[&str], most: usize, layouts: &[Layout]| {
        let mut models = vec![String::new()];
        let mut from = 0;
        for _ in 0..most {
            let to = models.len();
            for at in from..to {
                for piece in pieces {
                    models.push(format!("{}{piece}", models[at]));
                }
            }
            from = to;
        }
        models.sort();
        models.dedup();
        models.retain(|model| !model.is_empty());
        let mut refused = 0;
        for layout in layouts {
            let mut seen = HashMap::new();
            for model in &models {
                for (rank, group, salt) in [(1, 0, ""), (1, 1, ""), (0x11, 0, ""), (1, 0, "0"), (1, 0, "ab_ab")] {
                    let key = key(model, rank, group, &[0xab, 0xcd], salt);
                    match layout.encode(&key) {
                        Ok(name) => {
                            assert_eq!(layout.decode(&name).as_ref(), Ok(&key));
                            assert_eq!(seen.insert(name, key), None);
                        }
                        Err(NameError::Collision { key: of, other, name }) => {
                            refused += 1;
                            assert_eq!(*of, key);
                            assert_ne!(*other, key);
                            assert_eq!(layout.encode(&other), Ok(name));
                        }
                        Err(NameError::GroupNotEncodable { group: 1 }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
        refused
    };
    let refused = check(&["-SEP-", "SEP-", "-SEP", "-", "/"], 5, &Layout::ALL);
    assert!(refused > 100, "{refused}");
    assert_eq!(check(&["_", "0", "00000001", "ab", "."], 5, &Layout::ALL), 0);
}

/// Pieces of which names and their mistakes are made.
const PIECES: [&str; 40] = [
    "a",
    "m",
    "-",
    "--",
    "-SEP-",
    "SEP",
    "-SEP",
    "SEP-",
    "_",
    "/",
    ".",
    "..",
    "%",
    "%2F",
    "\n",
    "\\",
    "é",
    "日本",
    "🦀",
    " ",
    "0",
    "1",
    "01",
    "ab",
    "AB",
    "abcd",
    "ab/",
    "ab/cd/",
    "0x",
    "00000001",
    "0x00000001",
    "x",
    "@",
    "@0",
    "_0_",
    ".data",
    ".bin",
    ".tmp.",
    "\0",
    "g",
];

fn text(most: usize) -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::collection::vec(select(&PIECES[..]), 0..most).prop_map(|pieces| pieces.concat()),
        1 => any::<String>(),
    ]
}

/// Fields that may be right, between separators that may be.
fn near_name() -> impl Strategy<Value = String> {
    let directory = select(&["", "", "ab/cd/", "ab/", "ab/ce/"][..]);
    let separator = select(&["@", "@", "_", "_", "@@"][..]);
    let rank = select(&["0x00000001", "00000001", "deadbeef", "0x1"][..]);
    let group = select(&["0", "a", "00", "10", "deadbeef", "100000000"][..]);
    let hash = select(&["ab", "abcd", "abcdef", "AB", "abc"][..]);
    let salt = select(&["", "@", "@s", "@abcd", "@a_b", "@s.data", "@s@t", "@a/b"][..]);
    let extension = select(&["", ".data", ".data", ".bin", ".bin"][..]);
    (directory, text(3), separator, rank, group, hash, salt, extension).prop_map(
        |(directory, model, separator, rank, group, hash, salt, extension)| {
            format!("{directory}{}{salt}{extension}", [&model, rank, group, hash].join(separator))
        },
    )
}

fn any_key() -> impl Strategy<Value = ObjectKey> {
    let model = text(8).prop_map(|text| format!("m{}", text.replace(['@', '\0'], "")));
    // Half of the models start with something else than a letter.
    let model = (model, any::<bool>()).prop_map(|(model, strip)| match model.strip_prefix('m') {
        Some(rest) if strip && !rest.is_empty() => rest.to_owned(),
        _ => model,
    });
    let rank = prop_oneof![any::<u32>(), Just(0), Just(1), Just(u32::MAX)];
    let group = prop_oneof![4 => Just(0), 1 => 0_u32..300, 1 => any::<u32>()];
    let hash = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 32),
        2 => prop::collection::vec(any::<u8>(), 1..4),
        1 => prop::collection::vec(any::<u8>(), 1..128),
    ];
    let salt = prop_oneof![Just(String::new()), text(6)].prop_map(|text: String| -> String {
        let text = text.replace(SALT_FORBIDDEN, "");
        text.chars().take(128).collect()
    });
    (model, rank, group, hash, salt).prop_map(|(model, rank, group, hash, salt)| key(&model, rank, group, &hash, &salt))
}

/// What every name given or taken must be like on disk.
fn assert_safe(layout: Layout, path: &str) {
    let components: Vec<&str> = path.split('/').collect();
    let (file, shards) = components.split_last().unwrap();
    assert!(file.len() <= NAME_MAX && !file.contains('\0'), "{path:?}");
    assert!(file.ends_with(".data") || file.ends_with(".bin"), "{path:?}");
    assert!(layout.is_sharded() && matches!(shards.len(), 1 | 2) || shards.is_empty(), "{path:?}");
    let is_pair = |shard: &str| shard.len() == 2 && shard.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
    assert!(shards.iter().all(|shard| is_pair(shard)), "{path:?}");
}

/// If it decodes, encoding gives it back; with and without a cache that has seen it.
fn check_decoding(text: &str) {
    for layout in Layout::ALL {
        let mut decoder = Decoder::new(layout);
        let decoded = layout.decode(text);
        assert_eq!(decoder.decode(text), decoded);
        assert_eq!(decoder.decode(text), decoded);
        if let Ok(key) = decoded {
            assert_eq!(layout.encode(&key).as_deref(), Ok(text));
            assert_safe(layout, text);
        }
    }
    if let Ok(key) = wire::decode(text) {
        assert_eq!(wire::encode(&key), text);
        assert_eq!(Decoder::wire().decode(text), Ok(key));
    }
    if let Ok(key) = wire::decode3(text) {
        assert_eq!(wire::encode3(&key).as_deref(), Ok(text));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn keys_come_back(key in any_key()) {
        for layout in Layout::ALL {
            match layout.encode(&key) {
                Ok(name) => {
                    assert_safe(layout, &name);
                    assert_eq!(layout.decode(&name).as_ref(), Ok(&key));
                    assert_eq!(Decoder::new(layout).decode(&name).as_ref(), Ok(&key));
                }
                Err(NameError::Collision { other, name, .. }) => {
                    assert_ne!(&*other, &key);
                    assert_eq!(layout.decode(&name), Ok(*other));
                }
                Err(NameError::GroupNotEncodable { group }) => {
                    assert!(matches!(layout, Layout::Fs3 | Layout::Nixl3) && group == key.object_group_id());
                }
                Err(NameError::TooLong { bytes, name }) => assert!(bytes > NAME_MAX && name.len() == bytes),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(wire::decode(&wire::encode(&key)).as_ref(), Ok(&key));
        match wire::encode3(&key) {
            Ok(text) => assert_eq!(wire::decode3(&text).as_ref(), Ok(&key)),
            Err(error) => assert_eq!(error, NameError::GroupNotEncodable { group: key.object_group_id() }),
        }
    }

    #[test]
    fn garbage_is_refused_or_canonical(text in prop_oneof![text(14), near_name()]) {
        check_decoding(&text);
    }

    /// Closer to real names than garbage is: one with a piece replaced, inserted or cut out.
    #[test]
    fn damaged_names_are_refused_or_canonical(
        key in any_key(),
        form in 0..7_usize,
        at in any::<prop::sample::Index>(),
        cut in 0..3_usize,
        piece in prop_oneof![Just(""), select(&PIECES[..])],
    ) {
        let name = match form {
            5 => wire::encode(&key),
            6 => wire::encode3(&key).unwrap_or_default(),
            layout => Layout::ALL[layout].encode(&key).unwrap_or_default(),
        };
        let mut chars: Vec<char> = name.chars().collect();
        let at = at.index(chars.len() + 1);
        let end = (at + cut).min(chars.len());
        chars.splice(at..end, piece.chars());
        check_decoding(&chars.into_iter().collect::<String>());
    }

    #[test]
    fn detection_never_panics(names in prop::collection::vec(text(14), 0..4), key in any_key()) {
        let encoded = Layout::ALL.iter().filter_map(|layout| layout.encode(&key).ok());
        let all: Vec<String> = names.into_iter().chain(encoded).collect();
        let found = detect::detect(&all);
        assert_eq!(found.is_some(), all.iter().any(|n| Layout::ALL.iter().any(|l| l.decode(n).is_ok())));
    }
}
