/* beat.c - show from inside, to somebody who can read the guest's RAM, when the guest runs and what it gets done.
 *
 *   beat               a beat every millisecond, before all other work of the guest (SCHED_FIFO)
 *   beat work [PAGES]  and a second process that works as fast as it can in the time that nobody else wants (SCHED_IDLE): a unit of work is
 *                      some thousand instructions, and with PAGES a write to the next page of so many
 *
 * One page, found by its first two words, tells it; the rest is written in this order, so that a new `beats` has its clock:
 *
 *     word 0 1     word 2     word 3               word 4
 *     the mark     beats      clock of the beat    work done
 *
 * QEMU's clocks stand still while a VM is stopped: the guest's own clock shows a freeze only if the VM was not stopped for it. So the reader
 * holds his own clock against the beats (bench/watch.py). Prints once a second the largest gap in the guest's own clock:
 *   beat n=BEATS own_gap_us=… */
#define _GNU_SOURCE /* SCHED_IDLE */
#include "guest.h"

#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { PERIOD_NS = 1000000, REPORT_NS = 1000000000, BEATS = 2, CLOCK, WORK };

/* The mark is made at run time: it is to stand in one page of RAM only, not in the file's cache too. */
static volatile uint64_t *map_page(void)
{
  uint64_t *m = mmap(NULL, BLOCK_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (m == MAP_FAILED || mlock(m, BLOCK_SIZE) != 0) die("beat: no page");
  memset(m, 0, BLOCK_SIZE);
  for (uint64_t i = 0; i < 2; i++) ((volatile uint64_t *)m)[i] = 0x7662656174000000ull + (i + 1) * 0x9e3779b9ull;
  return m;
}

static void schedule(int policy, int priority)
{
  struct sched_param p = {.sched_priority = priority};
  if (sched_setscheduler(0, policy, &p) != 0) die("beat: no rights to schedule");
}

static _Noreturn void work(volatile uint64_t *page, uint64_t pages)
{
  uint64_t *set = mmap(NULL, (pages + 1) * BLOCK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (set == MAP_FAILED) die("beat: no memory for %" PRIu64 " pages", pages);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  schedule(SCHED_IDLE, 0);
  for (uint64_t sum = 1, step = 0;; page[WORK]++) {
    for (int i = 0; i < 1000; i++) sum = sum * 6364136223846793005ull + page[CLOCK] % 2;
    if (pages > 0) set[step++ % pages * BLOCK_WORDS] = sum;
  }
}

static void wait_until(uint64_t ns)
{
  struct timespec t = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) != 0)
    ;
}

static _Noreturn void beat(volatile uint64_t *page)
{
  uint64_t last = now_ns(), next = last, report = last + REPORT_NS, gap = 0;
  for (;;) {
    wait_until(next += PERIOD_NS);
    uint64_t now = now_ns();
    if (now - last > gap) gap = now - last;
    if (now > next + PERIOD_NS) next = now; /* what is late is not caught up */
    page[CLOCK] = last = now;
    page[BEATS]++;
    if (now < report) continue;
    say("beat n=%" PRIu64 " own_gap_us=%" PRIu64, page[BEATS], gap / 1000);
    report = now + REPORT_NS;
    gap = 0;
  }
}

int main(int argc, char **argv)
{
  bool works = argc >= 2 && argc <= 3 && strcmp(argv[1], "work") == 0;
  if (argc != 1 && !works) die("usage: beat [work [PAGES]]");
  volatile uint64_t *page = map_page();
  if (works && fork() == 0) work(page, argc == 3 ? parse_number(argv[2], "PAGES") : 0);
  schedule(SCHED_FIFO, 10);
  beat(page);
}
