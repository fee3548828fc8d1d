/* must.h - the rules of docs/rules.md, checked at run time, in release builds too.
 *
 * A broken rule means that going on could undo what the outside was told: the process is ended at once (fail-stop), the
 * other hosts recover the cluster. The rule's name is the first argument and stands in docs/rules.md. */
#ifndef VCFT_BASE_MUST_H
#define VCFT_BASE_MUST_H

_Noreturn void must_fail(const char *rule, const char *condition, const char *file, int line);

#define MUST(rule, condition) \
	do { \
		if (__builtin_expect(!(condition), 0)) \
			must_fail(rule, #condition, __FILE__, __LINE__); \
	} while (0)

#endif
