/* must.c - end the process when a rule is broken; see must.h. */
#include "base/must.h"

#include <stdio.h>
#include <stdlib.h>

_Noreturn void must_fail(const char *rule, const char *condition, const char *file, int line)
{
	fprintf(stderr, "virtcft: rule %s is broken: %s (%s:%d)\n", rule, condition, file, line);
	abort();
}
