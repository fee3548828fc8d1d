/* memwriter.c - dirty RAM at a given rate and check every page on every pass.
 *
 *   memwriter RATE PAGES        RATE pages a second (0: as fast as possible) over a working set of PAGES pages
 *
 * Step s treats page sweep_order(s): it must hold version s / PAGES, and gets the next version. Prints once a second
 *   memwriter ok pages=TOTAL passes=P
 * and, at the first page that does not hold what it must, `memwriter FAIL page=… word=… …`, and ends with status 1. */
#include "guest.h"

#include <inttypes.h>
#include <sys/mman.h>

static uint64_t *map_pages(uint64_t pages)
{
  void *m = mmap(NULL, pages * BLOCK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (m == MAP_FAILED) die("memwriter: no memory for %" PRIu64 " pages", pages);
  return m;
}

static void write_page(uint64_t *all, uint64_t step, uint64_t pages)
{
  uint64_t index = sweep_order(step, pages), version = step / pages;
  uint64_t *page = all + index * BLOCK_WORDS;
  ptrdiff_t bad = block_check(page, index, version);
  if (bad >= 0)
    die("memwriter FAIL page=%" PRIu64 " word=%td version=%" PRIu64 " found index=%" PRIu64 " version=%" PRIu64 " value=%" PRIx64,
        index, bad, version, page[0], page[1], page[bad]);
  block_fill(page, index, version + 1);
}

int main(int argc, char **argv)
{
  if (argc != 3) die("usage: memwriter RATE PAGES");
  struct pace pace = {.rate = parse_number(argv[1], "RATE")};
  uint64_t pages = parse_number(argv[2], "PAGES");
  if (pages == 0) die("memwriter: PAGES must be at least 1");
  uint64_t *all = map_pages(pages);
  for (uint64_t i = 0; i < pages; i++) block_fill(all + i * BLOCK_WORDS, i, 0);
  say("memwriter start rate=%" PRIu64 " pages=%" PRIu64, pace.rate, pages);

  uint64_t report = now_ns() + 1000000000;
  for (uint64_t step = 0;; step++) {
    pace_wait(&pace);
    write_page(all, step, pages);
    if (now_ns() < report) continue;
    report = now_ns() + 1000000000;
    say("memwriter ok pages=%" PRIu64 " passes=%" PRIu64, step + 1, (step + 1) / pages);
  }
}
