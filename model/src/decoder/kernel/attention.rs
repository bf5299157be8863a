//! Attention for the registers of x86, whose instruction sets differ in names and in lanes alone.

/// Makes `scores` and `weighted` of an instruction set: its features, the lanes of a register, the functions for zeros, one number in all
/// lanes, `a * b + c`, sums and stores, and one that widens as many numbers of 16 bits as a register has lanes.
macro_rules! attention {
    ($features:literal, $lanes:expr, $zero:ident, $splat:ident, $multiply_add:ident, $add:ident, $store:ident, $widen:ident) => {
        /// See [`super::scores`].
        ///
        /// # Safety
        /// The processor has these features; all queries are equally long, and `y` has `stride` numbers for each of them, one for each lane
        /// of the tiles of `k` and perhaps more.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn scores<const M: usize>(q: &[&[f32]; M], k: &[u16], y: &mut [f32], stride: usize) {
            let d = q[0].len();
            for (tile, k) in k.chunks_exact(d * ROWS).enumerate() {
                for lane in (0..ROWS).step_by($lanes) {
                    let mut sums = [[$zero(); 4]; M];
                    for i in (0..d).step_by(4) {
                        // Several queries share what they read, and take longer over it than memory does.
                        if M == 1 && lane == 0 {
                            prefetch_kept::<{ 4 * 2 * ROWS }>(k.as_ptr().wrapping_add(i * ROWS));
                        }
                        for j in 0..4.min(d - i) {
                            // SAFETY: a tile has 16 numbers for each of a query.
                            let k = unsafe { $widen(k.as_ptr().add((i + j) * ROWS + lane)) };
                            for (q, sums) in q.iter().zip(&mut sums) {
                                // SAFETY: a query has `d` numbers.
                                let q = $splat(unsafe { *q.as_ptr().add(i + j) });
                                sums[j] = $multiply_add(k, q, sums[j]);
                            }
                        }
                    }
                    for (m, [a, b, c, d]) in sums.into_iter().enumerate() {
                        let y = &mut y[m * stride + tile * ROWS + lane..][..$lanes];
                        // SAFETY: as many numbers as a register has lanes.
                        unsafe { $store(y.as_mut_ptr(), $add($add(a, b), $add(c, d))) };
                    }
                }
            }
        }

        /// See [`super::weighted`].
        ///
        /// # Safety
        /// The processor has these features; a row of `v` has `stride` numbers, a multiple of 16, as has `y` for each row of `p`; `v` has as
        /// many rows as the longest of these.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn weighted<const M: usize>(p: &[&[f32]; M], v: &[u16], y: &mut [f32], stride: usize) {
            let (mut at, n) = (0, stride / $lanes);
            while at < n {
                // SAFETY: the caller's promise; so many columns are left.
                at += unsafe {
                    match n - at {
                        4.. if M == 1 => columns::<M, 4>(p, v, y, stride, at),
                        _ => columns::<M, 1>(p, v, y, stride, at),
                    }
                };
            }
        }

        /// The columns of [`weighted`] of `N` registers, from the `at`-th register on; returns `N`.
        ///
        /// # Safety
        /// As [`weighted`], and so many columns are there.
        #[target_feature(enable = $features)]
        unsafe fn columns<const M: usize, const N: usize>(
            p: &[&[f32]; M],
            v: &[u16],
            y: &mut [f32],
            stride: usize,
            at: usize,
        ) -> usize {
            // SAFETY: the caller's promise.
            let row = |n: usize, i: usize| unsafe { $widen(v.as_ptr().add(n * stride + (at + i) * $lanes)) };
            let in_common = p.iter().map(|p| p.len()).min().unwrap_or(0) / 2 * 2;
            // Of even and of odd positions.
            let mut sums = [[[$zero(); N]; 2]; M];
            for n in (0..in_common).step_by(2) {
                for j in 0..2 {
                    if N == 4 {
                        prefetch_kept::<{ 4 * 2 * $lanes }>(v.as_ptr().wrapping_add((n + j) * stride + at * $lanes));
                    }
                    for i in 0..N {
                        let v = row(n + j, i);
                        for (p, sums) in p.iter().zip(&mut sums) {
                            // SAFETY: so many numbers they all have.
                            let p = $splat(unsafe { *p.as_ptr().add(n + j) });
                            sums[j][i] = $multiply_add(v, p, sums[j][i]);
                        }
                    }
                }
            }
            for (m, (p, mut sums)) in p.iter().zip(sums).enumerate() {
                for (n, p) in p.iter().enumerate().skip(in_common) {
                    for (i, sum) in sums[n % 2].iter_mut().enumerate() {
                        *sum = $multiply_add(row(n, i), $splat(*p), *sum);
                    }
                }
                let [even, odd] = sums;
                for (i, (even, odd)) in even.into_iter().zip(odd).enumerate() {
                    let y = &mut y[m * stride + (at + i) * $lanes..][..$lanes];
                    // SAFETY: as many numbers as a register has lanes.
                    unsafe { $store(y.as_mut_ptr(), $add(even, odd)) };
                }
            }
            N
        }
    };
}

pub(super) use attention;
