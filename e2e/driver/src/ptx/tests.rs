//! The language, from text to effect.

use super::{Global, Launch, parse, run};

/// Memory from address 0 up.
struct Flat(Vec<u8>);

impl Global for Flat {
    type Error = String;

    fn load(&mut self, address: u64, bytes: u32) -> Result<u64, String> {
        let start = usize::try_from(address).unwrap();
        let found = self
            .0
            .get(start..start + bytes as usize)
            .ok_or(format!("read at {address}"))?;
        let mut word = [0; 8];
        word[..found.len()].copy_from_slice(found);
        Ok(u64::from_le_bytes(word))
    }

    fn store(&mut self, address: u64, bytes: u32, value: u64) -> Result<(), String> {
        let start = usize::try_from(address).unwrap();
        let place = self
            .0
            .get_mut(start..start + bytes as usize)
            .ok_or(format!("write at {address}"))?;
        place.copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
        Ok(())
    }
}

impl Flat {
    fn words(&self) -> Vec<u32> {
        self.0
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect()
    }
}

/// Runs the first kernel of `text`.
fn execute(
    text: &str,
    grid: [u32; 3],
    block: [u32; 3],
    params: &[u64],
    memory: &mut Flat,
) -> Result<(), String> {
    let module = parse(text).map_err(|error| error.to_string())?;
    let kernel = &module.kernels[0];
    let mut packed = vec![0; kernel.param_bytes()];
    for (param, value) in kernel.params.iter().zip(params) {
        packed[param.offset..param.offset + param.size]
            .copy_from_slice(&value.to_le_bytes()[..param.size]);
    }
    let launch = Launch {
        kernel,
        grid,
        block,
        params: &packed,
    };
    run(&launch, memory)
}

/// A kernel around some statements, with `%i` as the thread's number and `%out` as the address of its word.
fn around(statements: &str) -> String {
    format!(
        ".version 8.0\n.target sm_70\n.address_size 64\n\
         .visible .entry k(.param .u64 out)\n{{\n\
         .reg .pred %p<4>; .reg .b32 %i, %r<8>; .reg .b64 %out, %d<8>; .reg .f32 %f<8>;\n\
         ld.param.u64 %out, [out];\n\
         mov.u32 %i, %tid.x;\n\
         mad.wide.u32 %out, %i, 4, %out;\n\
         {statements}\n}}\n"
    )
}

/// The first words that such a kernel leaves with 64 threads.
fn words(statements: &str) -> Vec<u32> {
    let mut memory = Flat(vec![0; 256]);
    execute(&around(statements), [1; 3], [64, 1, 1], &[0], &mut memory).unwrap();
    memory.words()
}

#[test]
fn the_kernel_of_the_gate_adds() {
    let text = include_str!("../../../../kernels/ptx/vector_add.ptx");
    let n: u32 = 1000;
    let (a, b): (Vec<f32>, Vec<f32>) = (0_u16..1000)
        .map(|i| (f32::from(i) * 0.1, f32::from(i) * -0.3))
        .unzip();
    let mut bytes = vec![0; 4000];
    bytes.extend(a.iter().chain(&b).flat_map(|x| x.to_le_bytes()));
    let mut memory = Flat(bytes);
    execute(
        text,
        [4, 1, 1],
        [256, 1, 1],
        &[0, 4000, 8000, n.into()],
        &mut memory,
    )
    .unwrap();
    for (i, word) in memory.words()[..1000].iter().enumerate() {
        assert_eq!(*word, (a[i] + b[i]).to_bits(), "element {i}");
    }
    assert_eq!(memory.words()[1000], a[0].to_bits(), "nothing past the end");
}

#[test]
fn a_wrong_kernel_gives_a_wrong_result() {
    let text =
        include_str!("../../../../kernels/ptx/vector_add.ptx").replace("add.rn.f32", "sub.rn.f32");
    let mut memory = Flat(
        [0.0_f32, 3.0, 5.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect(),
    );
    execute(&text, [1; 3], [32, 1, 1], &[0, 4, 8, 1], &mut memory).unwrap();
    assert_eq!(memory.words()[0], (-2.0_f32).to_bits());
}

#[test]
fn an_address_that_is_not_there_is_an_error() {
    let text = include_str!("../../../../kernels/ptx/vector_add.ptx");
    let mut memory = Flat(vec![0; 12]);
    let result = execute(text, [1; 3], [32, 1, 1], &[0, 4, 8, 2], &mut memory);
    assert_eq!(result, Err("read at 12".into()));
}

#[test]
fn lanes_part_at_a_branch_and_meet_again() {
    let found = words(
        "setp.lt.u32 %p0, %i, 10;\n\
         @%p0 bra few;\n\
         mov.u32 %r0, 200;\n\
         bra join;\n\
         few: mov.u32 %r0, 100;\n\
         join: add.u32 %r0, %r0, %i;\n\
         st.global.u32 [%out], %r0;",
    );
    for (i, word) in (0..).zip(found) {
        assert_eq!(word, if i < 10 { 100 + i } else { 200 + i });
    }
}

#[test]
fn loops_turn_as_often_as_each_lane_wants() {
    let found = words(
        "mov.u32 %r0, 0; mov.u32 %r1, 0;\n\
         again: setp.ge.u32 %p0, %r1, %i;\n\
         @%p0 bra done;\n\
         add.u32 %r1, %r1, 1;\n\
         add.u32 %r0, %r0, %r1;\n\
         bra.uni again;\n\
         done: st.global.u32 [%out], %r0;",
    );
    for (i, word) in (0..).zip(found) {
        assert_eq!(word, i * (i + 1) / 2);
    }
}

#[test]
fn guards_select_and_convert() {
    let found = words(
        "setp.hi.u32 %p1, %i, 31;\n\
         cvt.rn.f32.u32 %f0, %i;\n\
         fma.rn.f32 %f0, %f0, 0f40000000, 0f3F800000;\n\
         cvt.rzi.u32.f32 %r1, %f0;\n\
         selp.b32 %r2, 7, %r1, %p1;\n\
         @!%p1 add.u32 %r2, %r2, -1;\n\
         st.global.u32 [%out], %r2;",
    );
    for (i, word) in (0..).zip(found) {
        assert_eq!(word, if i > 31 { 7 } else { 2 * i });
    }
}

#[test]
fn atomics_count_every_lane() {
    let found =
        words("sub.u64 %out, %out, 0; ld.param.u64 %d0, [out]; red.global.add.u32 [%d0+4], 1;");
    assert_eq!(found[1], 64);
}

#[test]
fn grids_have_three_dimensions() {
    let text = ".version 8.0 .target sm_70 .address_size 64 .visible .entry k(.param .u64 out) {\n\
        .reg .b32 %r<9>; .reg .b64 %d;\n\
        mov.u32 %r0, %ctaid.z; mov.u32 %r1, %nctaid.y; mov.u32 %r2, %ctaid.y; mad.lo.u32 %r3, %r0, %r1, %r2;\n\
        mov.u32 %r4, %ntid.y; mov.u32 %r5, %tid.y; mad.lo.u32 %r3, %r3, %r4, %r5;\n\
        mov.u32 %r4, %ntid.x; mov.u32 %r5, %tid.x; mad.lo.u32 %r3, %r3, %r4, %r5;\n\
        ld.param.u64 %d, [out]; mad.wide.u32 %d, %r3, 4, %d; st.global.u32 [%d], %r3; }";
    let mut memory = Flat(vec![0xff; 4 * 2 * 3 * 5 * 7]);
    execute(text, [1, 3, 2], [7, 5, 1], &[0], &mut memory).unwrap();
    assert_eq!(memory.words(), (0..210).collect::<Vec<_>>());
}

#[test]
fn tensor_cores_multiply() {
    let text = ".version 8.0 .target sm_70 .address_size 64\n\
        .visible .entry k(.param .u64 a, .param .u64 b, .param .u64 out) {\n\
        .reg .b64 %a, %b, %out; .reg .b32 %x<8>, %y<8>; .reg .f32 %z<8>;\n\
        ld.param.u64 %a, [a]; ld.param.u64 %b, [b]; ld.param.u64 %out, [out];\n\
        wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {%x0,%x1,%x2,%x3,%x4,%x5,%x6,%x7}, [%a], 16;\n\
        wmma.load.b.sync.aligned.col.m16n16k16.global.f16 {%y0,%y1,%y2,%y3,%y4,%y5,%y6,%y7}, [%b], 16;\n\
        mov.f32 %z0, 0f3F800000; mov.f32 %z1, %z0; mov.f32 %z2, %z0; mov.f32 %z3, %z0;\n\
        mov.f32 %z4, %z0; mov.f32 %z5, %z0; mov.f32 %z6, %z0; mov.f32 %z7, %z0;\n\
        wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%z0,%z1,%z2,%z3,%z4,%z5,%z6,%z7},\n\
          {%x0,%x1,%x2,%x3,%x4,%x5,%x6,%x7}, {%y0,%y1,%y2,%y3,%y4,%y5,%y6,%y7}, {%z0,%z1,%z2,%z3,%z4,%z5,%z6,%z7};\n\
        wmma.store.d.sync.aligned.row.m16n16k16.global.f32 [%out], {%z0,%z1,%z2,%z3,%z4,%z5,%z6,%z7}, 16; }";
    // Halves of small integers: 1.0 to 4.0 are 0x3c00, 0x4000, 0x4200, 0x4400.
    let halves = [0x3c00_u16, 0x4000, 0x4200, 0x4400];
    let a = |row: usize, k: usize| (row + k) % 4;
    let b = |k: usize, column: usize| (k + 3 * column) % 4;
    let mut bytes = Vec::new();
    for row in 0..16 {
        bytes.extend((0..16).flat_map(|k| halves[a(row, k)].to_le_bytes()));
    }
    for column in 0..16 {
        bytes.extend((0..16).flat_map(|k| halves[b(k, column)].to_le_bytes()));
    }
    bytes.resize(1024 + 1024, 0);
    let mut memory = Flat(bytes);
    execute(text, [1; 3], [32, 1, 1], &[0, 512, 1024], &mut memory).unwrap();
    for row in 0..16 {
        for column in 0..16 {
            let sum: usize = (0..16).map(|k| (a(row, k) + 1) * (b(k, column) + 1)).sum();
            let expected = 1.0 + f32::from(u16::try_from(sum).unwrap());
            assert_eq!(
                memory.words()[256 + 16 * row + column],
                expected.to_bits(),
                "{row} {column}"
            );
        }
    }
}

#[test]
fn what_does_not_belong_is_refused_with_its_line() {
    // That of the statement, or of what follows it.
    let lines = ["line 10;", "line 11;"];
    let table = [
        (
            "frobnicate.u32 %r0, %r1;",
            "Not a name of any known instruction: 'frobnicate.u32'",
        ),
        ("add.u32 %r0, %r9, 1;", "Unknown symbol '%r9'"),
        ("add.u32 %r0, %d0, 1;", "type of '%d0'"),
        (".reg .u32 %u; add.f32 %f0, %u, %f1;", "type of '%u'"),
        ("bra nowhere;", "Unknown symbol 'nowhere'"),
        ("ld.param.u32 %r0, [out];", "Illegal modifier"),
        ("add.u32 %r0, %r1;", "Illegal modifier or operands"),
        ("cvt.u32.f32 %r0, %f0;", "Illegal modifier"),
        ("add.u32 %r0, %r1, 1", "syntax error"),
        (".reg .b32 %r0;", "Duplicate definition"),
        ("x: x: ret;", "Duplicate definition of label"),
    ];
    for (statement, message) in table {
        let error = parse(&around(statement)).unwrap_err().to_string();
        assert!(error.contains(message), "{statement}: {error}");
        assert!(
            lines.iter().any(|line| error.contains(line)),
            "{statement}: {error}"
        );
    }
}

#[test]
fn headers_are_checked() {
    assert!(parse("").is_err());
    assert!(
        parse(".target sm_70")
            .unwrap_err()
            .to_string()
            .contains("Missing .version")
    );
    assert!(
        parse(".version 8.0 .visible .entry k() { ret; }")
            .unwrap_err()
            .to_string()
            .contains("Missing .target")
    );
    assert!(parse("\x7fELF").is_err());
    let module = parse(".version 8.7\n.target sm_100a\n.address_size 64").unwrap();
    assert_eq!(
        (module.version, module.target, module.suffix),
        ((8, 7), 100, Some('a'))
    );
}

#[test]
fn kernels_that_wait_are_known_and_look_at_the_time() {
    let waits = |statements: &str| parse(&around(statements)).unwrap().kernels[0].waits();
    assert!(waits("ld.acquire.sys.global.u32 %r0, [%out];"));
    assert!(waits("ld.relaxed.sys.global.u32 %r0, [%out];"));
    assert!(!waits("ld.global.u32 %r0, [%out];"));
    assert!(!waits("st.release.sys.global.u32 [%out], %i;"));

    // Until the clock has moved; then 1 in every word.
    let found = words(
        "mov.u64 %d0, %clock64;\n\
         again: mov.u64 %d1, %clock64;\n\
         setp.eq.u64 %p0, %d0, %d1;\n\
         @%p0 bra again;\n\
         st.release.sys.global.u32 [%out], 1;",
    );
    assert_eq!(found, [1; 64]);
}

#[test]
fn differences_are_gathered_with_or() {
    let found = words(
        "setp.ne.u32 %p0, %i, %i;\n\
         cvt.rn.f32.u32 %f0, %i;\n\
         setp.neu.or.f32 %p0, %f0, 0f40000000, %p0;\n\
         setp.neu.or.f32 %p0, %f0, %f0, %p0;\n\
         selp.b32 %r0, 1, 0, %p0;\n\
         st.global.u32 [%out], %r0;",
    );
    for (i, word) in (0..).zip(found) {
        assert_eq!(word, u32::from(i != 2), "{i}");
    }
}
