/* guest.h - what the little test programs of the tiny guest share.
 *
 * The programs run inside a guest (and udpseq, pinger also beyond the uplink of the lab). They are static C programs
 * without any library but libc, so that the guest image stays small and boots in seconds under TCG.
 *
 * Self-checking blocks. A block is 4096 bytes whose content follows from (index, version) alone:
 *
 *     word 0       word 1         word 2 .. 511
 *     index        version        mix(index, version, word)
 *
 * A writer sweeps over its blocks in a fixed order; which version a block must hold is known from the position in the
 * sweep, so a single number on the writer's stack checks the whole working set: a page, a disk block or a register that
 * comes from another moment than the rest is found when the sweep gets there. */
#ifndef VCFT_GUEST_H
#define VCFT_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BLOCK_SIZE = 4096, BLOCK_WORDS = BLOCK_SIZE / 8 };

/* A pace of `rate` steps a second (0: as fast as possible). A frozen clock is not caught up: no burst after a freeze. */
struct pace {
  uint64_t rate;
  uint64_t next_ns;
};

uint64_t now_ns(void);                                    /* CLOCK_MONOTONIC */
void pace_wait(struct pace *p);                           /* sleeps until the next step is due */
void block_fill(uint64_t *block, uint64_t index, uint64_t version);
ptrdiff_t block_check(const uint64_t *block, uint64_t index, uint64_t version); /* first bad word, or -1 */
uint64_t sweep_order(uint64_t step, uint64_t blocks);     /* a permutation of 0..blocks-1: neighbours are far apart */
uint64_t parse_number(const char *text, const char *what); /* exits with a message if it is not a number */
void say(const char *format, ...) __attribute__((format(printf, 1, 2))); /* one whole line to stdout, at once */
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

#endif
