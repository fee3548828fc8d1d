/* diskwriter.c - write a disk at a given rate and check every block on every pass.
 *
 *   diskwriter RATE BLOCKS [FILE]     RATE blocks of 4 KiB a second (0: as fast as possible) over the first BLOCKS blocks
 *                                     of FILE (default /dev/vda, whose content is lost)
 *
 * The first pass writes; from then on step s reads block sweep_order(s), which must hold version s / BLOCKS, and writes the
 * next version. All with O_DIRECT, so the data comes from the disk and not from the guest's memory; a flush every 16
 * writes. Because the position in the sweep lives in RAM, a disk and a RAM from different moments do not go unnoticed.
 * Prints once a second `diskwriter ok blocks=TOTAL passes=P`; on a wrong block `diskwriter FAIL block=… …` and status 1. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void transfer(ssize_t done, const char *what, uint64_t index)
{
  if (done == BLOCK_SIZE) return;
  die("diskwriter FAIL %s block=%" PRIu64 ": %s", what, index, done < 0 ? strerror(errno) : "short");
}

static void check_block(int fd, uint64_t *buffer, uint64_t index, uint64_t version)
{
  transfer(pread(fd, buffer, BLOCK_SIZE, (off_t)(index * BLOCK_SIZE)), "read", index);
  ptrdiff_t bad = block_check(buffer, index, version);
  if (bad >= 0)
    die("diskwriter FAIL block=%" PRIu64 " word=%td version=%" PRIu64 " found index=%" PRIu64 " version=%" PRIu64, index, bad,
        version, buffer[0], buffer[1]);
}

static void write_block(int fd, uint64_t *buffer, uint64_t step, uint64_t blocks)
{
  uint64_t index = sweep_order(step, blocks), version = step / blocks;
  if (version > 0) check_block(fd, buffer, index, version);
  block_fill(buffer, index, version + 1);
  transfer(pwrite(fd, buffer, BLOCK_SIZE, (off_t)(index * BLOCK_SIZE)), "write", index);
  if (step % 16 == 15 && fdatasync(fd) != 0) die("diskwriter FAIL flush: %s", strerror(errno));
}

int main(int argc, char **argv)
{
  if (argc != 3 && argc != 4) die("usage: diskwriter RATE BLOCKS [FILE]");
  struct pace pace = {.rate = parse_number(argv[1], "RATE")};
  uint64_t blocks = parse_number(argv[2], "BLOCKS");
  const char *file = argc == 4 ? argv[3] : "/dev/vda";
  if (blocks == 0) die("diskwriter: BLOCKS must be at least 1");
  int fd = open(file, O_RDWR | O_DIRECT | (argc == 4 ? O_CREAT : 0), 0600);
  if (fd < 0) die("diskwriter: %s: %s", file, strerror(errno));
  uint64_t *buffer = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
  if (buffer == NULL) die("diskwriter: no memory");
  say("diskwriter start rate=%" PRIu64 " blocks=%" PRIu64 " file=%s", pace.rate, blocks, file);

  uint64_t report = now_ns() + 1000000000;
  for (uint64_t step = 0;; step++) {
    pace_wait(&pace);
    write_block(fd, buffer, step, blocks);
    if (now_ns() < report) continue;
    report = now_ns() + 1000000000;
    say("diskwriter ok blocks=%" PRIu64 " passes=%" PRIu64, step + 1, (step + 1) / blocks);
  }
}
