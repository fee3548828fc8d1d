/* guest.c - clock, pace, self-checking blocks and output lines for the test programs (see guest.h). */
#include "guest.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ull

uint64_t now_ns(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Steps that are less than a timer tick apart go out in small groups: sleep only when at least 2 ms are left. Steps that
 * are more than 100 ms late are forgotten: a guest that was frozen goes on at its pace. */
void pace_wait(struct pace *p)
{
  if (p->rate == 0) return;
  uint64_t now = now_ns();
  if (p->next_ns == 0 || p->next_ns + NS_PER_S / 10 < now) p->next_ns = now;
  if (p->next_ns > now + 2 * NS_PER_S / 1000) {
    uint64_t wait = p->next_ns - now;
    struct timespec t = {.tv_sec = (time_t)(wait / NS_PER_S), .tv_nsec = (long)(wait % NS_PER_S)};
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &t, &t) == EINTR)
      ;
  }
  p->next_ns += NS_PER_S / p->rate;
}

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t x)
{
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

void block_fill(uint64_t *block, uint64_t index, uint64_t version)
{
  uint64_t seed = mix(index ^ mix(version));
  block[0] = index;
  block[1] = version;
  for (size_t i = 2; i < BLOCK_WORDS; i++) block[i] = seed + i * 0x9e3779b97f4a7c15ull;
}

ptrdiff_t block_check(const uint64_t *block, uint64_t index, uint64_t version)
{
  uint64_t seed = mix(index ^ mix(version));
  if (block[0] != index) return 0;
  if (block[1] != version) return 1;
  for (size_t i = 2; i < BLOCK_WORDS; i++)
    if (block[i] != seed + i * 0x9e3779b97f4a7c15ull) return (ptrdiff_t)i;
  return -1;
}

static uint64_t gcd(uint64_t a, uint64_t b)
{
  while (b != 0) {
    uint64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

uint64_t sweep_order(uint64_t step, uint64_t blocks)
{
  uint64_t stride = blocks * 5 / 8 + 1;
  while (gcd(stride, blocks) != 1) stride++;
  return step % blocks * stride % blocks;
}

uint64_t parse_number(const char *text, const char *what)
{
  char *end;
  errno = 0;
  unsigned long long n = strtoull(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0' || text[0] == '-') die("%s: '%s' is not a number", what, text);
  return n;
}

static void vsay(int fd, const char *format, va_list args)
{
  char line[512];
  int n = vsnprintf(line, sizeof line - 1, format, args);
  if (n < 0) return;
  if ((size_t)n > sizeof line - 2) n = sizeof line - 2;
  line[n] = '\n';
  if (write(fd, line, (size_t)n + 1) < 0) exit(1);
}

void say(const char *format, ...)
{
  va_list args;
  va_start(args, format);
  vsay(STDOUT_FILENO, format, args);
  va_end(args);
}

void die(const char *format, ...)
{
  va_list args;
  va_start(args, format);
  vsay(STDOUT_FILENO, format, args);
  va_end(args);
  exit(1);
}
