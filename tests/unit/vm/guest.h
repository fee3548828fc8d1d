/* guest.h - test verbs: a tiny guest in a real QEMU, with the folder, console and RAM file that it needs.
 *
 * Where they are: $VIRTCFT_GUESTS has vmlinuz and tiny.cpio.gz, $VIRTCFT_PRELOAD is virtcft-preload.so. guest_requires() skips the test with the
 * reason if something is missing. All verbs end the test on failure. */
#ifndef VCFT_TEST_VM_GUEST_H
#define VCFT_TEST_VM_GUEST_H

#include "vm/vm-private.h"

struct guest {
	char *dir;                    /* on tmpfs; removed by guest_stop() */
	char *ram, *console, *log, *append;
	struct vm_spec spec;
	struct vm *vm;
	size_t seen;                  /* bytes of the console log that were waited for */
};

bool guest_requires(void);
/* A spec for 96 MiB, 1 vCPU, no devices, the uffd tracker, verify and hot pages on. run: commands at boot (see guests/README.md), or NULL. */
struct guest guest_new(const char *run);
/* Power on (state NULL) or restore, without run(). */
void guest_start(struct guest *g, const uint8_t *state, size_t bytes);
void guest_run(struct guest *g);
/* Power on, run, wait until it says that it is ready. */
void guest_boot(struct guest *g);
/* Wait for a text on the console that was not waited for yet; returns the rest of its line. */
char *guest_expect(struct guest *g, const char *text);
/* Forget what the console has said up to now. */
void guest_forget(struct guest *g);
/* Run a command on the guest's console. */
void guest_type(struct guest *g, const char *line);
void guest_capture(struct guest *g, struct capture *c, gboolean (*stopped)(void *, GError **), void *user);
/* End the process, keep the files. */
void guest_kill(struct guest *g);
/* End it and remove everything. */
void guest_stop(struct guest *g);

/* RAM as an image that is built from captures, plain memory. */
uint8_t *image_new(const struct guest *g);
void image_apply(uint8_t *image, const struct capture *c);
/* What is in the RAM file, holes as zeros, without filling them. */
void image_of_ram(const struct guest *g, uint8_t *image);
void image_free(const struct guest *g, uint8_t *image);

#endif
