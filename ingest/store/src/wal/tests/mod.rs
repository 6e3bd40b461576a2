//! Tests of the write-ahead log: against a model, at every byte, on a disk that fails and loses power.
//!
//! Most run on the simulated disk of `sim.rs`, which is fast enough to try every offset; the ones
//! on real files prove that the real disk answers alike. None of them kills a process: that is for
//! the tests of the whole system.

mod sim;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::io::Errno;

use self::sim::{Dice, SimDisk};
use super::disk::{Disk, StdDisk};
use super::format::{
    RECORD_HEADER_BYTES, RECORDS_AT, RecordHeader, SEGMENT_HEADER_COPY_AT, SegmentHeader, log_tag, segment_name,
};
use super::*;

const DIR: &str = "/wal";
const RECORDS: usize = RECORDS_AT as usize;

type Log = Vec<(u64, u8, Vec<u8>)>;
type Image = BTreeMap<PathBuf, Vec<u8>>;

fn options() -> WalOptions {
    let mut options = WalOptions::new(DIR);
    options.segment_bytes_max = 1400;
    options.record_bytes_max = 4096;
    options.min_free_bytes = 0;
    options.covered_seq = Some(0);
    options
}

fn try_open(disk: &SimDisk, options: WalOptions) -> Result<(Wal, Recovery, Log), WalError> {
    let mut log = Log::new();
    let progress = ReplayProgress::default();
    let (wal, recovery) = Wal::open_on(Box::new(disk.clone()), options, &progress, &mut |r| {
        log.push((r.seq, r.kind, r.payload.to_vec()));
        Ok(())
    })?;
    assert_eq!(recovery.records, log.len() as u64);
    assert_eq!(progress.records(), recovery.records);
    assert_eq!(progress.bytes_done(), progress.bytes_total());
    assert!(log.windows(2).all(|w| w[0].0 < w[1].0), "not in order");
    assert!(log.last().is_none_or(|r| r.0 < recovery.next_seq), "a sequence number would be reused");
    assert_eq!(recovery.next_seq, wal.next_seq());
    Ok((wal, recovery, log))
}

fn open(disk: &SimDisk) -> (Wal, Recovery, Log) {
    try_open(disk, options()).unwrap()
}

fn seqs(log: &Log) -> Vec<u64> {
    log.iter().map(|r| r.0).collect()
}

fn payload(seq: u64) -> Vec<u8> {
    (0..50 + seq % 7).map(|i| (seq * 31 + i) as u8).collect()
}

/// Where a record lies.
#[derive(Debug, Clone)]
struct Place {
    file: PathBuf,
    from: usize,
    end: usize,
    seq: u64,
}

/// A log of three segments and 11 synced records, as its files and the places of its records.
fn small_log() -> (Image, Vec<Place>) {
    let disk = SimDisk::default();
    let (mut wal, recovery, _) = open(&disk);
    assert_eq!((recovery.next_seq, recovery.is_clean()), (1, true));
    let mut places: Vec<Place> = Vec::new();
    for seq in 1..=11 {
        let payload = payload(seq);
        assert_eq!(wal.append(seq as u8, &[&payload[..10], &[], &payload[10..]]).unwrap(), seq);
        assert_eq!(wal.sync().unwrap().seq_hi, seq);
        let newest = disk.image().into_iter().rfind(|(path, _)| path.extension().is_some_and(|e| e == "wal"));
        let (file, bytes) = newest.unwrap();
        let from = bytes.len() - RECORD_HEADER_BYTES - payload.len();
        places.push(Place { file, from, end: bytes.len(), seq });
    }
    assert_eq!(wal.segments(), 3);
    (disk.image(), places)
}

/// Opens a damaged log, writes to it, and opens it again: it must find the same records and losses,
/// and the new record.
fn survive(image: &Image) -> (Recovery, Log) {
    let disk = SimDisk::from_image(image);
    let (mut wal, recovery, log) = open(&disk);
    let seq = wal.append(99, &[b"after"]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (_, again, mut log_again) = open(&disk);
    assert_eq!(log_again.pop(), Some((seq, 99, b"after".to_vec())));
    assert_eq!(log_again, log, "a second start finds something else");
    assert_eq!(again.records_lost, recovery.records_lost, "a second start counts otherwise");
    assert!(again.records_lost_durable <= again.records_lost);
    (recovery, log)
}

fn expect_log(log: &Log, kept: impl Fn(u64) -> bool, context: &str) {
    let expected: Log = (1..=11).filter(|s| kept(*s)).map(|s| (s, s as u8, payload(s))).collect();
    assert_eq!(seqs(log), seqs(&expected), "{context}");
    assert_eq!(*log, expected, "{context}");
}

#[test]
fn a_flipped_bit_at_any_offset_costs_at_most_its_record() {
    let (image, places) = small_log();
    let mut tried = 0;
    for (file, bytes) in &image {
        for at in 0..bytes.len() {
            for flip in [1_u8 << (at % 8), 0x80, 0xff] {
                tried += 1;
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                let mut image = image.clone();
                image.insert(file.clone(), bytes);
                let (recovery, log) = survive(&image);
                let context = format!("{} at {at} ^ {flip:#x}: {recovery:?}", file.display());
                let hit = places.iter().find(|p| p.file == *file && (p.from..p.end).contains(&at)).map(|p| p.seq);
                expect_log(&log, |s| Some(s) != hit, &context);
                assert_eq!(recovery.records_lost, u64::from(hit.is_some()), "{context}");
                assert_eq!(recovery.torn_bytes, 0, "{context}");
                let padding = hit.is_none() && at % SEGMENT_HEADER_COPY_AT >= 64;
                assert_eq!(recovery.is_clean(), padding, "{context}");
                assert!(
                    padding || recovery.damages.iter().all(|d| file.ends_with(&d.file) || d.bytes == 0),
                    "{context}"
                );
                // All but the last record were followed by one that proves they were durable.
                if hit.is_some_and(|s| s < 11) {
                    assert_eq!(recovery.records_lost_durable, 1, "{context}");
                }
                if let Some(seq) = hit {
                    let place = &places[seq as usize - 1];
                    let copied = recovery.damages.iter().find(|d| d.what == DamageKind::Bytes).unwrap();
                    assert_eq!(copied.offset, place.from as u64, "{context}");
                    assert_eq!(copied.bytes, (place.end - place.from) as u64, "{context}");
                    assert!(copied.quarantined, "{context}");
                }
            }
        }
    }
    assert!(tried > 10_000);
}

#[test]
fn a_file_cut_at_any_offset_costs_the_records_behind_the_cut() {
    let (image, places) = small_log();
    let last_file = &places[10].file;
    for (file, bytes) in &image {
        for len in 0..bytes.len() {
            let mut image = image.clone();
            image.insert(file.clone(), bytes[..len].to_vec());
            let (recovery, log) = survive(&image);
            let context = format!("{} cut to {len}: {recovery:?}", file.display());
            let gone = |s: u64| places[s as usize - 1].file == *file && places[s as usize - 1].end > len;
            expect_log(&log, |s| !gone(s), &context);
            if file == last_file {
                // Nothing follows that could tell how many records there were.
                assert_eq!(recovery.records_lost, 0, "{context}");
                let whole = places.iter().filter(|p| p.file == *file && p.end <= len).map(|p| p.end).max();
                let torn = len.saturating_sub(whole.unwrap_or(RECORDS));
                assert_eq!(recovery.torn_bytes, torn as u64, "{context}");
                assert_eq!(recovery.is_clean(), len >= RECORDS, "{context}");
            } else {
                let lost = (1..=11).filter(|s| gone(*s)).count() as u64;
                assert_eq!((recovery.records_lost, recovery.records_lost_durable), (lost, lost), "{context}");
                assert_eq!(recovery.torn_bytes, 0, "{context}");
                let identity = file.ends_with("log.id");
                assert_eq!(lost == 0, identity, "{context}");
                assert_eq!(recovery.is_clean(), identity && len >= SEGMENT_HEADER_COPY_AT + 64, "{context}");
            }
        }
    }
}

#[test]
fn quarantine_holds_the_damaged_bytes() {
    let (mut image, places) = small_log();
    let place = &places[5];
    let bytes = image.get_mut(&place.file).unwrap();
    bytes[place.from + 60] ^= 4;
    let damaged = bytes[place.from..place.end].to_vec();
    let disk = SimDisk::from_image(&image);
    drop(open(&disk));
    let name = format!("{}.at-{}", place.file.file_name().unwrap().to_str().unwrap(), place.from);
    assert_eq!(disk.image()[&Path::new(DIR).join("quarantine").join(name)], damaged);
}

#[test]
fn whole_files_that_go_wrong_are_named_and_never_stop_a_start() {
    let (image, places) = small_log();
    let first = places[0].file.clone();
    let middle = places[5].file.clone();
    let last = places[10].file.clone();
    let middle_records = places.iter().filter(|p| p.file == middle).count() as u64;
    let in_file = |file: &Path, s: u64| places[s as usize - 1].file == *file;
    let foreign = {
        let disk = SimDisk::default();
        let (mut wal, _, _) = open(&disk);
        wal.append(7, &[b"not ours"]).unwrap();
        wal.sync().unwrap();
        disk.image()[&Path::new(DIR).join(segment_name(1))].clone()
    };
    let identity = Path::new(DIR).join("log.id");
    let wal = |name: &str| Path::new(DIR).join(name);
    type Change<'c> = Box<dyn Fn(&mut Image) + 'c>;
    struct Row<'c> {
        what: &'c str,
        change: Change<'c>,
        /// The segment whose records are gone.
        gone: Option<&'c PathBuf>,
        lost: u64,
        damages: Vec<(DamageKind, bool)>,
    }
    let missing = |records| DamageKind::MissingBefore { records };
    let rows = vec![
        Row { what: "nothing", change: Box::new(|_| {}), gone: None, lost: 0, damages: vec![] },
        Row {
            what: "first missing",
            change: Box::new(|i| drop(i.remove(&first))),
            gone: Some(&first),
            lost: places.iter().filter(|p| p.file == first).count() as u64,
            damages: vec![(missing(places.iter().filter(|p| p.file == first).count() as u64), false)],
        },
        Row {
            what: "middle missing",
            change: Box::new(|i| drop(i.remove(&middle))),
            gone: Some(&middle),
            lost: middle_records,
            damages: vec![(missing(middle_records), false)],
        },
        Row {
            what: "middle of no length",
            change: Box::new(|i| i.get_mut(&middle).unwrap().clear()),
            gone: Some(&middle),
            lost: middle_records,
            damages: vec![(DamageKind::ZeroLength, true), (missing(middle_records), false)],
        },
        Row {
            what: "last of no length",
            change: Box::new(|i| i.get_mut(&last).unwrap().clear()),
            gone: Some(&last),
            lost: 0,
            damages: vec![(DamageKind::ZeroLength, true)],
        },
        Row {
            what: "middle zeroed",
            change: Box::new(|i| i.get_mut(&middle).unwrap().fill(0)),
            gone: Some(&middle),
            lost: middle_records,
            damages: vec![(DamageKind::Header, true), (missing(middle_records), false)],
        },
        Row {
            what: "both headers of the middle",
            change: Box::new(|i| i.get_mut(&middle).unwrap()[..RECORDS].fill(0xaa)),
            gone: None,
            lost: 0,
            damages: vec![(DamageKind::Header, true)],
        },
        Row {
            what: "both headers of all, and the identity",
            change: Box::new(|i| {
                i.values_mut().for_each(|bytes| bytes[..RECORDS].fill(0xaa));
                i.remove(&identity);
            }),
            gone: None,
            lost: 0,
            damages: vec![
                (DamageKind::Identity, false),
                (DamageKind::Header, true),
                (DamageKind::Header, true),
                (DamageKind::Header, true),
            ],
        },
        Row {
            what: "foreign segment after ours",
            change: Box::new(|i| drop(i.insert(wal(&segment_name(1000)), foreign.clone()))),
            gone: None,
            lost: 0,
            damages: vec![(DamageKind::Foreign, true)],
        },
        Row {
            what: "foreign segment instead of the middle",
            change: Box::new(|i| drop(i.insert(middle.clone(), foreign.clone()))),
            gone: Some(&middle),
            lost: middle_records,
            damages: vec![(DamageKind::Foreign, true), (missing(middle_records), false)],
        },
        Row {
            what: "identity missing",
            change: Box::new(|i| drop(i.remove(&identity))),
            gone: None,
            lost: 0,
            damages: vec![(DamageKind::Identity, false)],
        },
        Row {
            what: "identity missing, and a foreign segment",
            change: Box::new(|i| {
                i.remove(&identity);
                i.insert(wal(&segment_name(1000)), foreign.clone());
            }),
            gone: None,
            lost: 0,
            damages: vec![(DamageKind::Identity, false), (DamageKind::Foreign, true)],
        },
        Row {
            what: "middle renamed",
            change: Box::new(|i| {
                let bytes = i.remove(&middle).unwrap();
                i.insert(wal("saved copy.bak"), bytes);
            }),
            gone: None,
            lost: 0,
            damages: vec![(DamageKind::Renamed, false)],
        },
        Row {
            what: "middle twice",
            change: Box::new(|i| drop(i.insert(wal(&segment_name(1000)), i[&middle].clone()))),
            gone: None,
            lost: 0,
            damages: vec![(DamageKind::Renamed, false), (DamageKind::Duplicate, true)],
        },
        Row {
            what: "garbage named as a segment",
            change: Box::new(|i| drop(i.insert(wal("notes.wal"), b"shopping list".to_vec()))),
            gone: None,
            lost: 0,
            damages: vec![(DamageKind::NotASegment, true)],
        },
        Row {
            what: "sequence number in the name out of range",
            change: Box::new(|i| drop(i.insert(wal("99999999999999999999.wal"), vec![1; 5000]))),
            gone: None,
            lost: 0,
            damages: vec![(DamageKind::NotASegment, true)],
        },
        Row {
            what: "unknown and unfinished files",
            change: Box::new(|i| {
                i.insert(wal("README"), b"hands off".to_vec());
                i.insert(wal("00000000000000000012.wal.tmp"), b"half a hea".to_vec());
            }),
            gone: None,
            lost: 0,
            damages: vec![],
        },
    ];
    for row in rows {
        let mut image = image.clone();
        (row.change)(&mut image);
        let (recovery, log) = survive(&image);
        expect_log(&log, |s| row.gone.is_none_or(|f| !in_file(f, s)), row.what);
        assert_eq!(recovery.records_lost, row.lost, "{}: {recovery:?}", row.what);
        let damages: Vec<_> = recovery.damages.iter().map(|d| (d.what, d.quarantined)).collect();
        assert_eq!(damages, row.damages, "{}", row.what);
        assert!(recovery.damages.iter().all(|d| !d.file.is_empty() && !d.to_string().is_empty()), "{}", row.what);
    }
}

#[test]
fn the_numbers_that_a_start_skips_are_no_loss_though_every_header_behind_them_is_gone() {
    let (image, _) = small_log();
    let disk = SimDisk::from_image(&image);
    let (mut wal, _, _) = open(&disk);
    let seq = wal.append(12, &[&payload(12)]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let mut image = disk.image();
    image.get_mut(&Path::new(DIR).join(segment_name(seq))).unwrap()[..RECORDS].fill(0xaa);
    let (recovery, log) = survive(&image);
    assert_eq!(log.last(), Some(&(seq, 12, payload(12))));
    assert_eq!((log.len(), recovery.records_lost), (12, 0), "{recovery:?}");
}

#[test]
fn a_record_of_another_log_inside_a_payload_is_never_taken_for_one() {
    let disk = SimDisk::default();
    let (mut other, _, _) = open(&disk);
    (1..=5).for_each(|seq| assert_eq!(other.append(1, &[b"smuggled"]).unwrap(), seq));
    let evil = disk.image()[&Path::new(DIR).join(segment_name(1))][RECORDS..].to_vec();

    let disk = SimDisk::default();
    let (mut wal, _, _) = open(&disk);
    wal.append(1, &[&evil]).unwrap();
    wal.append(2, &[b"honest"]).unwrap();
    wal.sync().unwrap();
    let mut image = disk.image();
    // Damage in the header makes the scan walk through the payload.
    image.get_mut(&Path::new(DIR).join(segment_name(1))).unwrap()[RECORDS + 5] ^= 1;
    let (recovery, log) = survive(&image);
    assert_eq!(log, vec![(2, 2, b"honest".to_vec())]);
    assert_eq!(recovery.records_lost, 1);
}

#[test]
fn a_newer_version_is_refused_by_name_and_a_damaged_version_is_not() {
    let (image, places) = small_log();
    let mut newer = image.clone();
    let bytes = newer.get_mut(&places[5].file).unwrap();
    for at in [0, SEGMENT_HEADER_COPY_AT] {
        bytes[at + 8] = 9;
        let crc = crc32c::crc32c(&bytes[at..at + 60]);
        bytes[at + 60..at + 64].copy_from_slice(&crc.to_le_bytes());
    }
    let error = try_open(&SimDisk::from_image(&newer), options()).unwrap_err();
    assert!(matches!(&error, WalError::NewerVersion { found: 9, supported: 1, .. }), "{error}");
    let name = places[5].file.to_str().unwrap();
    assert_eq!(
        error.to_string(),
        format!("{name} has version 9 of the write-ahead log format, this release reads up to 1")
    );
    assert!(!error.is_retryable() && !error.is_fatal());
    assert_eq!(SimDisk::from_image(&newer).image(), newer, "a refusal changes nothing");
}

#[test]
fn a_header_from_the_first_release_is_read_for_ever() {
    let header = SegmentHeader {
        log_id: *b"0123456789abcdef",
        first_seq: 0x1122_3344,
        prev_last_seq: 0x0102_0304,
        prev_durable_seq: 0x0102_0303,
        after_recovery: true,
    };
    let bytes = header.encode();
    let mut written = b"GODSWAL\0\x01\0\0\0\x01\0\0\x000123456789abcdef".to_vec();
    written.extend_from_slice(b"\x44\x33\x22\x11\0\0\0\0\x04\x03\x02\x01\0\0\0\0\x03\x03\x02\x01\0\0\0\0\0\0\0\0");
    assert_eq!(bytes[..60], written);
    assert_eq!(SegmentHeader::decode(&bytes), Ok((header, true)));
}

#[test]
fn a_length_field_never_decides_how_much_memory_is_taken() {
    let (mut image, places) = small_log();
    let bytes = image.get_mut(&places[10].file).unwrap();
    bytes.truncate(places[10].from);
    let record = RecordHeader {
        seq: 11,
        durable_seq: 10,
        log_tag: log_tag(&SegmentHeader::decode(bytes).unwrap().0.log_id),
        kind: 0,
        len: u32::MAX,
        payload_crc: 0,
    };
    bytes.extend_from_slice(&record.encode());
    bytes.extend_from_slice(b"short");
    let (recovery, log) = survive(&image);
    expect_log(&log, |s| s < 11, "u32::MAX");
    assert_eq!((recovery.torn_bytes, recovery.records_lost), (45, 0));
}

#[test]
fn a_sector_that_cannot_be_read_costs_its_records_and_nothing_is_thrown_away() {
    let disk = SimDisk::default();
    let mut options = options();
    options.segment_bytes_max = 1 << 20;
    let (mut wal, _, _) = try_open(&disk, options).unwrap();
    for seq in 1..=100 {
        assert_eq!(wal.append(seq as u8, &[&[seq as u8; 460]]).unwrap(), seq);
    }
    wal.sync().unwrap();
    drop(wal);
    let image = disk.image();
    let file = Path::new(DIR).join(segment_name(1));
    let len = image[&file].len();
    let quarantine = Path::new(DIR).join("quarantine");
    for at in [RECORDS + 5, 10_000, 30_000, len - 3] {
        let disk = SimDisk::from_image(&image);
        disk.state().bad_sector = Some((file.clone(), at as u64..at as u64 + 1));
        let (_, recovery, log) = open(&disk);
        // A read that fails is repeated in pieces of 4096 bytes: at most ten records each.
        assert!((88..=98).contains(&log.len()), "{at}: {recovery:?}");
        assert!(log.iter().all(|(seq, kind, p)| *kind == *seq as u8 && *p == [*seq as u8; 460]));
        let torn_ends = recovery.damages.iter().filter(|d| d.what == DamageKind::TornEnd).count();
        if log.last().is_some_and(|r| r.0 == 100) {
            assert_eq!((recovery.damages_total, torn_ends), (1, 0), "{recovery:?}");
            assert_eq!(recovery.records_lost, 100 - log.len() as u64, "{at}: {recovery:?}");
        } else {
            // At the end it cannot be known how many there were.
            assert_eq!(torn_ends, 1, "{recovery:?}");
            assert!(recovery.records_lost < 100 - log.len() as u64, "{at}: {recovery:?}");
        }
        // What is read as torn may be whole on the disk: it must not be cut off.
        assert_eq!(disk.image()[&file], image[&file], "{at}");
        let copies = disk.image().keys().filter(|p| p.starts_with(&quarantine)).count();
        assert_eq!(copies as u64, recovery.damages_total);
    }
}

#[test]
fn a_full_disk_is_refused_and_heals() {
    for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
        for after in [0, 1, 39, 40, 41, 89] {
            let disk = SimDisk::default();
            let (mut wal, _, _) = open(&disk);
            wal.append(1, &[&[1; 50]]).unwrap();
            wal.sync().unwrap();
            let before = disk.image();
            disk.state().write_max = 7;
            disk.state().fail_write_after = Some((after, errno));
            let error = wal.append(2, &[&[2; 50]]).unwrap_err();
            assert!(error.is_retryable() && !error.is_fatal(), "{error}");
            assert_eq!(disk.image(), before, "half a record stayed");
            assert_eq!(wal.append(3, &[&[3; 50]]).unwrap(), 2);
            wal.sync().unwrap();
            drop(wal);
            let (_, recovery, log) = open(&disk);
            assert_eq!(log, vec![(1, 1, vec![1; 50]), (2, 3, vec![3; 50])]);
            assert!(recovery.is_clean() && recovery.torn_bytes == 0);
        }
    }
}

#[test]
fn a_full_disk_is_refused_by_every_step_of_a_roll_and_heals() {
    for after in [0, 1, 1023] {
        let disk = SimDisk::default();
        let (mut wal, _, _) = open(&disk);
        // The first append of a process also writes the identity file.
        for skip in [0, 1024] {
            disk.state().fail_write_after = Some((after + skip, Errno::NOSPC));
            if wal.next_seq() == 1 {
                assert!(wal.append(1, &[&[1; 300]]).unwrap_err().is_retryable());
            }
        }
        disk.state().fail_write_after = None;
        assert_eq!(wal.append(1, &[&[1; 300]]).unwrap(), 1);
        disk.state().fail_write_after = Some((after, Errno::NOSPC));
        assert!(wal.append(1, &[&[2; 300]]).unwrap_err().is_retryable());
        assert_eq!(wal.segments(), 1);
        assert_eq!(wal.append(1, &[&[3; 300]]).unwrap(), 2);
        assert_eq!(wal.segments(), 2);
        drop(wal);
        let (_, recovery, log) = open(&disk);
        assert_eq!((seqs(&log), recovery.is_clean()), (vec![1, 2], true));
    }
}

#[test]
fn free_space_is_kept_for_the_store() {
    let disk = SimDisk::default();
    disk.state().capacity = 10_000;
    let mut options = options();
    options.min_free_bytes = 5_000;
    options.segment_bytes_max = 3_000;
    let (mut wal, _, _) = try_open(&disk, options).unwrap();
    let mut appended = 0;
    let error = loop {
        match wal.append(1, &[&[7; 500]]) {
            Ok(_) => appended += 1,
            Err(e) => break e,
        }
        wal.sync().unwrap();
    };
    assert!(error.is_retryable() && error.to_string().contains("must leave 5000"), "{error}");
    let used: usize = disk.image().values().map(Vec::len).sum();
    assert!((3_000..=6_100).contains(&used), "{used}");
    wal.truncate_below(appended + 1).unwrap();
    wal.append(1, &[&[7; 500]]).unwrap();
}

#[test]
fn a_start_needs_no_room_on_a_full_disk() {
    let (image, _) = small_log();
    let disk = SimDisk::from_image(&image);
    disk.state().capacity = 0;
    let (mut wal, recovery, log) = open(&disk);
    assert_eq!((log.len(), recovery.is_clean()), (11, true));
    assert!(wal.append(1, &[b"no"]).unwrap_err().is_retryable());
    // A flush into the store makes room: all but the newest segment goes, then there is some.
    wal.truncate_below(12).unwrap();
    assert_eq!(wal.segments(), 1);
    disk.state().capacity = 100_000;
    wal.append(1, &[b"yes"]).unwrap();
    wal.sync().unwrap();
}

#[test]
fn an_error_that_is_not_about_room_is_reported_and_undone() {
    let disk = SimDisk::default();
    let (mut wal, _, _) = open(&disk);
    wal.append(1, &[b"one"]).unwrap();
    disk.state().fail_write_after = Some((3, Errno::IO));
    let error = wal.append(1, &[b"two"]).unwrap_err();
    assert!(matches!(&error, WalError::Io { op: "append to", .. }), "{error}");
    assert!(!error.is_retryable() && !error.is_fatal());
    assert_eq!(wal.append(1, &[b"two"]).unwrap(), 2);
}

#[test]
fn a_failed_sync_is_for_ever_and_never_tried_again() {
    // Which sync fails: of the record, of the full segment, of the new one and of its directory.
    for which in 0..12 {
        let disk = SimDisk::default();
        let (mut wal, _, _) = open(&disk);
        let already = disk.state().syncs;
        disk.state().fail_sync_after = Some(which);
        let mut acked = 0;
        let error = loop {
            match wal.append(1, &[&[5; 300]]).and_then(|_| wal.sync()) {
                Ok(durable) => acked = durable.seq_hi,
                Err(e) => break e,
            }
        };
        assert!(matches!(&error, WalError::SyncFailed { .. }) && error.is_fatal() && !error.is_retryable(), "{error}");
        let syncs = disk.state().syncs;
        assert_eq!(syncs, already + which + 1);
        assert!(wal.append(1, &[b"x"]).unwrap_err().is_fatal());
        assert!(wal.sync().unwrap_err().is_fatal());
        assert!(wal.truncate_below(1).unwrap_err().is_fatal());
        assert_eq!(disk.state().syncs, syncs, "a failed sync was tried again");
        drop(wal);
        disk.lose_power(&mut Dice(u64::from(which)));
        let (_, recovery, log) = open(&disk);
        assert!(log.len() as u64 >= acked && recovery.records_lost_durable == 0, "{acked}: {recovery:?}");
    }
}

#[test]
fn a_sync_that_fails_during_recovery_fails_the_open() {
    let (image, _) = small_log();
    for which in 0..2 {
        let disk = SimDisk::from_image(&image);
        disk.state().fail_sync_after = Some(which);
        assert!(try_open(&disk, options()).unwrap_err().is_fatal());
    }
}

#[test]
fn a_failed_write_that_cannot_be_undone_is_for_ever() {
    let disk = SimDisk::default();
    let (mut wal, _, _) = open(&disk);
    wal.append(1, &[b"one"]).unwrap();
    wal.sync().unwrap();
    disk.state().fail_write_after = Some((10, Errno::NOSPC));
    disk.state().fail_set_len = true;
    let error = wal.append(1, &[b"two"]).unwrap_err();
    assert!(matches!(&error, WalError::RollbackFailed { .. }) && error.is_fatal() && !error.is_retryable());
    disk.state().fail_set_len = false;
    assert!(matches!(wal.append(1, &[b"two"]), Err(WalError::RollbackFailed { .. })));
    drop(wal);
    let (_, recovery, log) = open(&disk);
    assert_eq!((seqs(&log), recovery.torn_bytes, recovery.is_clean()), (vec![1], 10, true));
}

#[test]
fn truncation_takes_covered_segments_and_never_the_memory_of_numbers() {
    let (image, places) = small_log();
    for seq in 0..=13 {
        let disk = SimDisk::from_image(&image);
        let (mut wal, before, _) = open(&disk);
        wal.truncate_below(seq).unwrap();
        let bytes = wal.bytes();
        drop(wal);
        let on_disk: usize =
            disk.image().iter().filter(|(p, _)| p.extension().is_some_and(|e| e == "wal")).map(|(_, b)| b.len()).sum();
        assert_eq!(bytes, on_disk as u64);
        let mut options = options();
        options.covered_seq = Some(seq.saturating_sub(1));
        let (_, recovery, log) = try_open(&disk, options).unwrap();
        let kept = |s: u64| places.iter().any(|p| p.file == places[s as usize - 1].file && p.seq >= seq);
        expect_log(&log, kept, &format!("below {seq}"));
        assert!(recovery.is_clean(), "{recovery:?}");
        assert!(recovery.next_seq >= before.next_seq, "numbers start again");
    }
}

#[test]
fn the_active_segment_is_truncated_once_it_is_worth_it() {
    let disk = SimDisk::default();
    let mut options = options();
    options.segment_bytes_max = 16 * 1024;
    let (mut wal, _, _) = try_open(&disk, options).unwrap();
    wal.append(1, &[&[1; 100]]).unwrap();
    wal.truncate_below(2).unwrap();
    assert_eq!((wal.segments(), wal.bytes()), (1, 1024 + 140), "not worth two syncs");
    let seq = wal.append(1, &[&[1; 1000]]).unwrap();
    wal.truncate_below(seq).unwrap();
    assert_eq!(wal.bytes(), 1024 + 140 + 1040, "still needed");
    wal.truncate_below(seq + 1).unwrap();
    assert_eq!((wal.segments(), wal.bytes()), (1, 1024));
    assert_eq!(wal.append(1, &[b"next"]).unwrap(), seq + 1);
}

#[test]
fn numbers_are_never_given_out_twice() {
    let disk = SimDisk::default();
    let mut highest = 0;
    for _ in 0..5 {
        // Starts that write nothing, starts that create a segment and lose what is in it.
        drop(open(&disk));
        let (mut wal, recovery, _) = open(&disk);
        assert!(recovery.is_clean(), "{recovery:?}");
        for _ in 0..3 {
            let seq = wal.append(1, &[b"never synced"]).unwrap();
            assert!(seq > highest);
            highest = seq;
        }
        drop(wal);
        disk.lose_power(&mut Dice(1));
    }
    // Everything is gone but what the caller knows.
    let mut options = options();
    options.covered_seq = Some(highest);
    let (_, recovery, _) = try_open(&SimDisk::default(), options).unwrap();
    assert!(recovery.next_seq > highest && recovery.is_clean());
}

#[test]
fn a_segment_that_held_nothing_is_no_loss_and_no_burden() {
    let disk = SimDisk::default();
    let (mut wal, _, _) = open(&disk);
    (1..=3).for_each(|seq| assert_eq!(wal.append(1, &[b"kept"]).unwrap(), seq));
    wal.sync().unwrap();
    drop(wal);
    // This segment gets its name, and its only record never reaches the disk.
    let (mut wal, _, _) = open(&disk);
    let lost = wal.append(1, &[b"lost"]).unwrap();
    drop(wal);
    let empty = Path::new(DIR).join(segment_name(lost));
    let mut image = disk.image();
    image.get_mut(&empty).unwrap().truncate(RECORDS);
    let disk = SimDisk::from_image(&image);
    let (mut wal, recovery, _) = open(&disk);
    assert!(recovery.is_clean() && recovery.segments == 2);
    let seq = wal.append(1, &[b"new"]).unwrap();
    wal.sync().unwrap();

    let mut without = disk.image();
    without.remove(&empty);
    let (recovery, log) = survive(&without);
    assert!(recovery.is_clean() && seqs(&log) == [1, 2, 3, seq], "{recovery:?}");

    wal.truncate_below(4).unwrap();
    assert_eq!(wal.segments(), 1, "the empty segment goes with those before it");
    // What was truncated does not come back.
    drop(wal);
    let image = disk.image();
    disk.lose_power(&mut Dice(1));
    assert_eq!(disk.image(), image);
}

#[test]
fn truncated_segments_do_not_come_back_after_a_power_cut() {
    let (image, _) = small_log();
    for seed in 0..20 {
        let disk = SimDisk::from_image(&image);
        let (mut wal, _, _) = open(&disk);
        wal.truncate_below(11).unwrap();
        let truncated = disk.image();
        assert!(truncated.len() < image.len());
        disk.lose_power(&mut Dice(seed));
        assert_eq!(disk.image(), truncated);
    }
}

#[test]
fn no_more_records_are_unsynced_than_a_start_skips() {
    let disk = SimDisk::default();
    let (mut wal, _, _) = open(&disk);
    wal.append(1, &[b"one"]).unwrap();
    wal.unsynced = SEQ_SKIP;
    wal.append(1, &[b"two"]).unwrap();
    assert_eq!((wal.durable_seq(), wal.unsynced), (1, 1));
}

#[test]
fn what_recovery_replayed_is_durable_before_it_counts() {
    let disk = SimDisk::default();
    let (mut wal, _, _) = open(&disk);
    (1..=3).for_each(|seq| assert_eq!(wal.append(1, &[b"page cache"]).unwrap(), seq));
    drop(wal); // Killed before the sync: the kernel still has the records.
    let (wal, _, log) = open(&disk);
    assert_eq!((seqs(&log), wal.durable_seq()), (vec![1, 2, 3], 3));
    drop(wal);
    for seed in 0..20 {
        disk.lose_power(&mut Dice(seed));
        assert_eq!(seqs(&open(&disk).2), vec![1, 2, 3]);
    }
}

#[test]
fn a_log_can_move_to_the_thread_that_owns_it() {
    fn movable<T: Send + 'static>() {}
    movable::<Wal>();
    movable::<WalError>();
}

#[test]
fn a_torn_end_that_could_not_be_cut_stays_a_torn_end() {
    let (mut image, places) = small_log();
    image.get_mut(&places[10].file).unwrap().truncate(places[10].end - 1);
    let disk = SimDisk::from_image(&image);
    disk.state().fail_set_len = true;
    let (mut wal, recovery, _) = open(&disk);
    let torn = recovery.torn_bytes;
    assert!(torn > 0 && recovery.is_clean(), "{recovery:?}");
    wal.append(1, &[b"next"]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (_, recovery, log) = open(&disk);
    assert_eq!((log.len(), recovery.torn_bytes, recovery.is_clean()), (11, torn, true), "{recovery:?}");
}

#[test]
fn a_torn_end_is_cut_off_and_its_bytes_are_kept_aside() {
    let (image, places) = small_log();
    let place = &places[10];
    // What lies at the end in place of record 11, and whether it is kept in quarantine.
    let mut junk = vec![0xa7; RECORD_HEADER_BYTES];
    junk[32..36].fill(0); // The checksum of an empty payload: no proof of a record.
    let rows: [(Vec<u8>, bool, bool); 4] = [
        (vec![0; 700], false, true),
        (vec![0xa7; 39], true, true),
        (vec![0xa7; 300], true, false),
        (junk, true, false),
    ];
    for (end, copied, clean) in rows {
        let mut image = image.clone();
        let bytes = image.get_mut(&place.file).unwrap();
        bytes.truncate(place.from);
        let whole = bytes.clone();
        bytes.extend_from_slice(&end);
        let disk = SimDisk::from_image(&image);
        let (_, recovery, log) = open(&disk);
        assert_eq!((log.len(), recovery.records_lost), (10, 0));
        assert_eq!((recovery.torn_bytes, recovery.is_clean()), (end.len() as u64, clean), "{recovery:?}");
        let after = disk.image();
        assert_eq!(after[&place.file], whole);
        let quarantine = Path::new(DIR).join("quarantine");
        let kept = after.iter().find(|(p, _)| p.starts_with(&quarantine));
        assert_eq!(kept.map(|(_, b)| b), copied.then_some(&end));
        let (_, again, _) = open(&disk);
        assert!(again.is_clean() && again.torn_bytes == 0);
    }
}

#[test]
fn nothing_to_sync_costs_nothing() {
    let disk = SimDisk::default();
    let (mut wal, _, _) = open(&disk);
    assert_eq!(wal.sync().unwrap().seq_hi, 0);
    wal.append(1, &[b"a"]).unwrap();
    wal.append(1, &[b"b"]).unwrap();
    let before = disk.state().syncs;
    assert_eq!(wal.sync().unwrap().seq_hi, 2);
    assert_eq!(wal.sync().unwrap().seq_hi, 2);
    assert_eq!(disk.state().syncs, before + 1);
}

#[test]
fn limits_and_visitor_errors_are_errors_of_their_own() {
    let disk = SimDisk::default();
    let (mut wal, _, _) = open(&disk);
    let error = wal.append(1, &[&[0; 4000], &[0; 97]]).unwrap_err();
    assert_eq!(error.to_string(), "record of 4097 bytes is larger than the limit of 4096 bytes");
    assert!(!error.is_retryable() && !error.is_fatal());
    wal.append(1, &[&[0; 4000], &[0; 96]]).unwrap();
    wal.append(1, &[]).unwrap();
    drop(wal);
    let progress = ReplayProgress::default();
    let refused = Wal::open_on(Box::new(disk.clone()), options(), &progress, &mut |_| Err("no".into()));
    assert!(matches!(refused, Err(WalError::Visitor { seq: 1, .. })));
    let mut too_large = options();
    too_large.record_bytes_max = RECORD_BYTES_LIMIT + 1;
    assert!(matches!(try_open(&disk, too_large), Err(WalError::Unusable { .. })));
    // A lower limit for new records leaves the old ones readable.
    let mut lower = options();
    lower.record_bytes_max = 10;
    assert_eq!(seqs(&try_open(&disk, lower).unwrap().2), vec![1, 2]);
}

/// A log under random use: what was appended, and what has to be there after any accident.
struct Story {
    disk: SimDisk,
    options: WalOptions,
    wal: Option<Wal>,
    /// Every record that was ever accepted, by number.
    accepted: BTreeMap<u64, (u8, Vec<u8>)>,
    /// Records that have to be found: durable and not truncated.
    owed: BTreeMap<u64, ()>,
    unsynced: Vec<u64>,
    floor: u64,
}

impl Story {
    fn new(disk: SimDisk) -> Self {
        let mut options = options();
        options.segment_bytes_max = 4096;
        let mut story = Self {
            disk,
            options,
            wal: None,
            accepted: BTreeMap::new(),
            owed: BTreeMap::new(),
            unsynced: Vec::new(),
            floor: 1,
        };
        story.start();
        story
    }

    fn wal(&mut self) -> &mut Wal {
        self.wal.as_mut().unwrap()
    }

    fn append(&mut self, kind: u8, payload: Vec<u8>) {
        let cut = payload.len() / 3;
        match self.wal().append(kind, &[&payload[..cut], &payload[cut..]]) {
            Ok(seq) => {
                assert!(self.accepted.insert(seq, (kind, payload)).is_none(), "number {seq} was used before");
                self.unsynced.push(seq);
            }
            Err(e) => assert!(e.is_retryable(), "{e}"),
        }
    }

    fn sync(&mut self) {
        let durable = self.wal().sync().unwrap();
        let expected = self.unsynced.last().copied().or(self.owed.keys().next_back().copied());
        assert!(expected.is_none_or(|seq| durable.seq_hi >= seq));
        self.owed.extend(self.unsynced.drain(..).map(|seq| (seq, ())));
    }

    /// Truncates at some record that is durable.
    fn truncate(&mut self, pick: usize) {
        let durable: Vec<u64> = self.owed.keys().copied().collect();
        if let Some(seq) = durable.get(pick % durable.len().max(1)) {
            self.floor = self.floor.max(*seq + 1);
            let floor = self.floor;
            self.wal().truncate_below(floor).unwrap();
            self.owed.retain(|seq, ()| *seq >= floor);
        }
    }

    /// Starts again and checks what is found. Whatever was found counts from then on.
    fn start(&mut self) -> Recovery {
        self.wal = None;
        self.options.covered_seq = Some(self.floor - 1);
        let (wal, recovery, log) = try_open(&self.disk, self.options.clone()).unwrap();
        for (seq, kind, payload) in &log {
            assert_eq!(self.accepted.get(seq), Some(&(*kind, payload.clone())), "record {seq} is an invention");
        }
        let found: BTreeMap<u64, ()> = log.iter().map(|r| (r.0, ())).filter(|r| r.0 >= self.floor).collect();
        let missing: Vec<_> = self.owed.keys().filter(|seq| !found.contains_key(seq)).collect();
        assert!(missing.is_empty(), "acknowledged records {missing:?} are gone: {recovery:?}");
        self.owed = found;
        self.unsynced.clear();
        self.wal = Some(wal);
        recovery
    }

    fn power_cut(&mut self, dice: &mut Dice) {
        self.wal = None;
        self.disk.lose_power(dice);
        let recovery = self.start();
        assert_eq!(recovery.records_lost_durable, 0, "a power cut is no proof of loss: {recovery:?}");
    }

    /// A killed process loses nothing at all that was appended: the kernel has it.
    fn kill(&mut self) {
        let appended: Vec<u64> = self.unsynced.clone();
        let recovery = self.start();
        assert!(appended.iter().all(|seq| self.owed.contains_key(seq)));
        assert_eq!(recovery.records_lost_durable, 0);
    }
}

#[test]
fn what_was_synced_survives_any_power_cut() {
    let (mut cuts, mut torn, mut gaps, mut refused) = (0, 0, 0, 0);
    let seeds = std::env::var("GODSEYE_POWER_LOSS_SEEDS").map_or(1500, |seeds| seeds.parse().expect("it is a number"));
    for seed in 0..seeds {
        let mut dice = Dice(seed);
        let mut story = Story::new(SimDisk::default());
        for _ in 0..60 {
            match dice.below(40) {
                0..22 => {
                    let len = [dice.below(40), dice.below(700), dice.below(2500)][dice.below(3)];
                    let byte = dice.next() as u8;
                    story.append(byte, (0..len).map(|i| byte.wrapping_mul(i as u8 | 1)).collect());
                }
                22..32 => story.sync(),
                32..34 => story.truncate(dice.below(50)),
                34 => story.kill(),
                35..37 => {
                    story.disk.state().fail_write_after = Some((dice.below(3000), Errno::NOSPC));
                    refused += 1;
                }
                37 => story.disk.state().write_max = [1 + dice.below(700), usize::MAX][dice.below(2)],
                _ => {
                    story.disk.state().fail_write_after = None;
                    story.wal = None;
                    story.disk.lose_power(&mut dice);
                    let recovery = story.start();
                    assert_eq!(recovery.records_lost_durable, 0, "seed {seed}: {recovery:?}");
                    cuts += 1;
                    torn += u64::from(recovery.torn_bytes > 0);
                    gaps += u64::from(recovery.records_lost > 0);
                }
            }
        }
        story.disk.state().fail_write_after = None;
        story.power_cut(&mut dice);
    }
    // The disasters did happen: a simulation that never tears anything proves nothing.
    assert!(cuts > 1000 && torn > 100 && gaps > 20 && refused > 1000, "{cuts} {torn} {gaps} {refused}");
}

#[test]
fn the_end_of_a_process_at_every_single_disk_state_of_a_roll() {
    // With this many seeds every prefix of the directory journal of a roll comes up.
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let mut story = Story::new(SimDisk::default());
        story.options.segment_bytes_max = 1100;
        story.start();
        for i in 0..4 {
            story.append(i, vec![i; 200]);
            if dice.below(2) == 0 {
                story.sync();
            }
        }
        if dice.below(2) == 0 {
            story.truncate(dice.below(4));
        }
        story.power_cut(&mut dice);
        story.append(9, vec![9; 20]);
        story.sync();
        story.power_cut(&mut dice);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Append(u8, usize),
    Sync,
    Truncate(usize),
    Kill,
    PowerCut(u64),
    DiskFull(bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (any::<u8>(), 0_usize..3000).prop_map(|(kind, len)| Op::Append(kind, len)),
        3 => Just(Op::Sync),
        1 => any::<usize>().prop_map(Op::Truncate),
        1 => Just(Op::Kill),
        1 => any::<u64>().prop_map(Op::PowerCut),
        1 => any::<bool>().prop_map(Op::DiskFull),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn random_use_agrees_with_the_model(ops in prop::collection::vec(op(), 1..60)) {
        let mut story = Story::new(SimDisk::default());
        for op in ops {
            match op {
                Op::Append(kind, len) => story.append(kind, vec![kind; len]),
                Op::Sync => story.sync(),
                Op::Truncate(pick) => story.truncate(pick),
                Op::Kill => story.kill(),
                Op::PowerCut(seed) => story.power_cut(&mut Dice(seed)),
                Op::DiskFull(full) => story.disk.state().capacity = if full { 0 } else { u64::MAX },
            }
        }
        story.disk.state().capacity = u64::MAX;
        story.kill();
    }

    #[test]
    fn random_bytes_in_place_of_files_never_stop_a_start(
        garbage in prop::collection::vec(any::<u8>(), 0..3000),
        which in 0_usize..4,
        at in 0_usize..1700,
    ) {
        let (mut image, _) = small_log();
        let bytes = image.values_mut().nth(which).unwrap();
        let at = at.min(bytes.len());
        let end = (at + garbage.len()).min(bytes.len());
        bytes.splice(at..end, garbage);
        let (_, log) = survive(&image);
        for (seq, kind, found) in log {
            prop_assert_eq!((kind, found), (seq as u8, payload(seq)));
        }
    }
}

#[test]
fn real_files_behave_like_the_simulated_ones() {
    let (image, _) = small_log();
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("deep").join("wal");
    let mut options = options();
    options.dir = dir.clone();
    let mut log = Log::new();
    let progress = ReplayProgress::default();
    let (mut wal, recovery) = Wal::open(options.clone(), &progress, &mut |_| Ok(())).unwrap();
    assert_eq!((recovery.next_seq, recovery.is_clean()), (1, true));
    for seq in 1..=11 {
        let payload = payload(seq);
        assert_eq!(wal.append(seq as u8, &[&payload[..10], &[], &payload[10..]]).unwrap(), seq);
        assert_eq!(wal.sync().unwrap().seq_hi, seq);
    }
    assert_eq!(
        wal.bytes(),
        image.iter().filter(|(p, _)| !p.ends_with("log.id")).map(|(_, b)| b.len() as u64).sum::<u64>()
    );
    let mut files: Vec<String> = StdDisk.list(&dir).unwrap().into_iter().map(|(name, _)| name).collect();
    files.sort();
    let simulated: Vec<_> = image.keys().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(files, simulated);
    drop(wal);

    // A torn end, a damaged record and a file that is none of ours.
    let torn = dir.join(&files[2]);
    let mut bytes = std::fs::read(&torn).unwrap();
    bytes.truncate(bytes.len() - 3);
    std::fs::write(&torn, &bytes).unwrap();
    let hit = dir.join(&files[0]);
    let mut bytes = std::fs::read(&hit).unwrap();
    bytes[RECORDS + 50] ^= 1;
    std::fs::write(&hit, &bytes).unwrap();
    std::fs::write(dir.join("junk.wal"), b"junk").unwrap();
    let (mut wal, recovery) = Wal::open(options.clone(), &progress, &mut |r| {
        log.push((r.seq, r.kind, r.payload.to_vec()));
        Ok(())
    })
    .unwrap();
    expect_log(&log, |s| s != 1 && s != 11, "real files");
    assert_eq!((recovery.records_lost, recovery.records_lost_durable), (1, 1));
    assert!(recovery.torn_bytes > 0);
    let kinds: Vec<_> = recovery.damages.iter().map(|d| (d.what, d.quarantined)).collect();
    assert_eq!(kinds, vec![(DamageKind::NotASegment, true), (DamageKind::Bytes, true)]);
    assert_eq!(StdDisk.list(&dir.join("quarantine")).unwrap().len(), 3);

    let seq = wal.append(1, &[&[1; 4000]]).unwrap();
    assert_eq!(wal.sync().unwrap().seq_hi, seq);
    wal.truncate_below(seq + 1).unwrap();
    assert_eq!((wal.segments(), wal.bytes()), (1, RECORDS_AT));
    drop(wal);
    options.covered_seq = Some(seq);
    let (_, recovery) = Wal::open(options, &ReplayProgress::default(), &mut |_| Ok(())).unwrap();
    assert!(recovery.is_clean() && recovery.records == 0 && recovery.next_seq > seq, "{recovery:?}");
}

#[test]
fn a_real_disk_without_enough_free_space_is_full() {
    let temporary = tempfile::tempdir().unwrap();
    let mut options = WalOptions::new(temporary.path());
    options.min_free_bytes = u64::MAX / 2;
    let (mut wal, _) = Wal::open(options, &ReplayProgress::default(), &mut |_| Ok(())).unwrap();
    assert!(wal.append(1, &[b"x"]).unwrap_err().is_retryable());
    assert_eq!(wal.segments(), 0);
}

#[test]
fn a_record_larger_than_the_window_and_than_a_segment_is_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let mut options = WalOptions::new(temporary.path());
    options.min_free_bytes = 0;
    options.segment_bytes_max = 1 << 20;
    let (mut wal, _) = Wal::open(options.clone(), &ReplayProgress::default(), &mut |_| Ok(())).unwrap();
    let parts: Vec<Vec<u8>> = (0..3000_usize).map(|i| vec![i as u8; 1000]).collect();
    let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    wal.append(1, &[b"small"]).unwrap();
    wal.append(2, &slices).unwrap();
    wal.append(3, &[b"small again"]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let mut sizes = Vec::new();
    let whole = parts.concat();
    let (_, recovery) = Wal::open(options, &ReplayProgress::default(), &mut |r| {
        sizes.push(r.payload.len());
        assert!(r.kind != 2 || r.payload == whole);
        Ok(())
    })
    .unwrap();
    assert_eq!(sizes, vec![5, 3_000_000, 11]);
    assert_eq!((recovery.segments, recovery.bytes), (3, 3_000_016));
}

#[test]
fn the_ledger_counts_what_is_gone_and_what_is_proven() {
    use super::ledger::Ledger;
    // (seq, durable_seq) of good records after number 0; lost, and proven lost.
    type Records<'r> = &'r [(u64, u64)];
    let rows: &[(Records<'_>, u64, u64)] = &[
        (&[(1, 0), (2, 1), (3, 2)], 0, 0),
        (&[(1, 0), (3, 0)], 1, 0),
        (&[(1, 0), (3, 0), (4, 3)], 1, 1),
        (&[(5, 0), (6, 2)], 4, 2),
        (&[(5, 2), (9, 6), (10, 9)], 7, 7),
    ];
    for (records, lost, durable) in rows {
        let mut ledger = Ledger::new(None);
        records.iter().for_each(|(seq, at)| ledger.good(*seq, *at));
        assert_eq!((ledger.lost(), ledger.lost_durable()), (*lost, *durable), "{records:?}");
    }
    let mut ledger = Ledger::new(Some(4));
    ledger.good(3, 0);
    ledger.good(7, 0);
    assert_eq!((ledger.lost(), ledger.counted()), (2, 7), "numbers that are covered never count as lost");
    ledger.end_of_process();
    ledger.skip_to(100);
    ledger.good(101, 100);
    assert_eq!((ledger.lost(), ledger.lost_durable()), (2, 0), "another process proves nothing");
}

/// Fail points are global to the process, so this one runs alone:
/// `cargo test -p store --features failpoints --lib -- --ignored fail_points`.
#[cfg(feature = "failpoints")]
#[test]
#[ignore = "fail points are global: run alone"]
fn fail_points_fail_what_they_name() {
    let scenario = fail::FailScenario::setup();
    let disk = SimDisk::default();
    let (mut wal, _, _) = open(&disk);
    fail::cfg("wal_append_enospc", "1*return").unwrap();
    assert!(wal.append(1, &[b"a"]).unwrap_err().is_retryable());
    assert_eq!(wal.append(1, &[b"a"]).unwrap(), 1);
    fail::cfg("wal_sync_error", "1*return").unwrap();
    assert!(wal.sync().unwrap_err().is_fatal());
    assert!(wal.sync().unwrap_err().is_fatal());
    for point in
        ["before_append", "after_append", "before_sync", "after_sync", "after_segment_create", "before_truncate"]
    {
        let name = format!("wal_{point}");
        let (mut wal, _, _) = open(&SimDisk::default());
        fail::cfg(name.as_str(), "panic").unwrap();
        let reached = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            wal.append(1, &[b"a"]).and_then(|_| wal.sync()).and_then(|_| wal.truncate_below(1))
        }));
        fail::remove(name.as_str());
        assert!(reached.is_err(), "{name} is never reached");
    }
    scenario.teardown();
}
