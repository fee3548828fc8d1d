/* preload.h - what the library preloaded into QEMU and the agent say to each other.
 *
 * The agent sets two variables in QEMU's environment; the library answers with one struct preload_answer, written to the descriptor, once the
 * RAM file has been mapped. Both are parts of one installation: native layout, no version. */
#ifndef VCFT_VM_PRELOAD_H
#define VCFT_VM_PRELOAD_H

#include <stdint.h>

#define PRELOAD_RAM "VIRTCFT_RAM"           /* path of the RAM file */
#define PRELOAD_TELL "VIRTCFT_TELL_FD"      /* number of an inherited descriptor, open for writing */
#define PRELOAD_FAULTS "VIRTCFT_FAULTS_FD"  /* number of an inherited descriptor of /dev/userfaultfd: QEMU is to wait for pages that are missing; -1: it is not */
#define PRELOAD_FAULTS_DEVICE "/dev/userfaultfd"

enum preload_step { PRELOAD_DONE, PRELOAD_OPEN, PRELOAD_API, PRELOAD_REGISTER };

struct preload_answer {
	uint64_t address, bytes;    /* QEMU's mapping of the RAM file */
	uint32_t step;              /* enum preload_step: PRELOAD_DONE, or what failed */
	int32_t error;              /* errno of that */
	int32_t missing;            /* number of the userfaultfd in QEMU, if it is registered for missing pages too; else -1 */
};

#endif
