/* tick.c - count aloud, so that a reader of the console sees when the guest runs and where it was put back to.
 *
 *   tick RATE        RATE lines a second: tick 0, tick 1, ... */
#include "guest.h"

#include <inttypes.h>

int main(int argc, char **argv)
{
  if (argc != 2) die("usage: tick RATE");
  struct pace pace = {.rate = parse_number(argv[1], "RATE")};
  if (pace.rate == 0) die("tick: RATE must be at least 1");
  for (uint64_t n = 0;; n++) {
    pace_wait(&pace);
    say("tick %" PRIu64, n);
  }
}
