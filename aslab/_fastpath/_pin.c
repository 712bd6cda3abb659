/* Pin: a view of a buffer for the time of a block, and so an export of its slot.

   A shortcut enters the outermost block alone. Blocks in it are entered in Python, and so left before it. */

#include "_core.h"

PyObject *pin_new(Core *core, PyObject *const *args)
{
    Pin *pin;
    if (core->n_pins) {
        pin = core->pins[--core->n_pins];
        _Py_NewReference((PyObject *)pin); /* it has kept its type */
    } else if ((pin = PyObject_GC_New(Pin, core->pin)) == NULL) {
        return NULL;
    }
    pin->buffer = Py_NewRef(args[0]);
    pin->view = pin->views = NULL;
    PyObject_GC_Track(pin);
    return (PyObject *)pin;
}

void pin_clear_kept(Core *core)
{
    while (core->n_pins) {
        PyObject_GC_Del(core->pins[--core->n_pins]);
        Py_DECREF(core->pin);
    }
}

static inline int is_outermost(Pin *pin)
{
    return pin->views == NULL || PyList_GET_SIZE(pin->views) == 0;
}

static inline int is_entered(Pin *pin)
{
    return pin->view != NULL || !is_outermost(pin);
}

PyObject *pin_enter(Core *core, PyObject *const *args)
{
    Pin *pin = (Pin *)args[0];
    Handle *handle = (Handle *)pin->buffer;
    PyTypeObject *type = handle == NULL ? NULL : Py_TYPE(handle);
    if (is_entered(pin) || (type != core->handle && type != core->seen && type != core->managed))
        return NULL;
    PyObject *view = handle_fresh_view(core, handle);
    if (view == NULL)
        return NULL;
    if (is_entered(pin) || handle_keep_pinned(handle, view)) {
        Py_DECREF(view); /* it was entered while the view was made, or there is no memory */
        return NULL;
    }
    if (is_entered(pin) || handle->slot == NULL) { /* as older views ended, which may call anything */
        handle_drop_pinned(handle, view);
        Py_DECREF(view);
        return NULL;
    }
    pin->view = view;
    return Py_NewRef(view);
}

/* Forget the view of a pin without ending it. -1 with an error. */
static int pin_lose(Core *core, Pin *pin)
{
    PyObject *view = pin->view;
    Handle *handle = (Handle *)pin->buffer;
    PyMemoryViewObject *memory = (PyMemoryViewObject *)view;
    int failed = 0;
    pin->view = NULL;
    if (Py_REFCNT(view) - (handle->pinned == view) == 1 && Py_REFCNT(memory->mbuf) == 1) {
        failed = handle_drop_pinned(handle, view) < 0; /* nobody else knows it */
    } else if (!(memory->flags & _Py_MEMORYVIEW_RELEASED)) { /* it lasts: what ends later is noted now, as in Python */
        Slot *slot = (Slot *)Py_NewRef(memory->mbuf->master.obj);
        int found = handle_drop_pinned(handle, view);
        failed = found < 0 || (found && slot_remember(core, slot, view, handle->home));
        Py_DECREF(slot);
    }
    Py_DECREF(view);
    return failed ? -1 : 0;
}

PyObject *pin_exit(Core *core, PyObject *const *args)
{
    Pin *pin = (Pin *)args[0];
    PyObject *view = pin->view, *done;
    if (view == NULL || !is_outermost(pin))
        return NULL;
    int known = Py_REFCNT(view) - (((Handle *)pin->buffer)->pinned == view) > 1;
    if (known && ((PyMemoryViewObject *)view)->exports == 0 && core->release != NULL) {
        pin->view = NULL;
        done = PyObject_CallMethodNoArgs(view, core->release); /* does nothing if it was released */
        Py_DECREF(view);
        return done;
    }
    return pin_lose(core, pin) ? NULL : Py_NewRef(Py_None); /* an array outlives the block: the pin lasts as long */
}

static int pin_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer", NULL};
    PyObject *buffer;
    Core *core = core_of(Py_TYPE(self));
    if (core == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!:Pin", names, core->handle, &buffer))
        return -1;
    if (((Pin *)self)->buffer != NULL) {
        PyErr_SetString(PyExc_TypeError, "a pin stays with its buffer");
        return -1;
    }
    ((Pin *)self)->buffer = Py_NewRef(buffer);
    return 0;
}

static int pin_traverse(PyObject *self, visitproc visit, void *arg)
{
    Pin *pin = (Pin *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(pin->buffer);
    Py_VISIT(pin->view);
    Py_VISIT(pin->views);
    return 0;
}

static int pin_clear(PyObject *self)
{
    Pin *pin = (Pin *)self;
    Py_CLEAR(pin->views);
    if (pin->view == NULL) /* else the handle has it, too, and what that needs is done at the end */
        Py_CLEAR(pin->buffer);
    return 0;
}

static void pin_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Pin *pin = (Pin *)self;
    Core *core = core_of(type);
    PyObject_GC_UnTrack(self);
    if (core == NULL)
        PyErr_Clear();
    if (pin->view != NULL && core != NULL) { /* never left */
        Pending pending;
        HOLD(pending);
        if (pin_lose(core, pin))
            PyErr_WriteUnraisable(NULL);
        GO_ON(pending);
    }
    Py_CLEAR(pin->view);
    Py_CLEAR(pin->views);
    if (core != NULL && type == core->pin && core->n_pins < KEPT_PINS) {
        core->pins[core->n_pins++] = pin;
        Py_CLEAR(pin->buffer);
        return;
    }
    Py_CLEAR(pin->buffer);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *pin_get_views(PyObject *self, void *Py_UNUSED(closure))
{
    Pin *pin = (Pin *)self;
    if (pin->views == NULL && (pin->views = PyList_New(0)) == NULL)
        return NULL;
    return Py_NewRef(pin->views);
}

static PyMemberDef pin_members[] = {{"_buffer", T_OBJECT_EX, offsetof(Pin, buffer), READONLY, NULL},
                                    {NULL, 0, 0, 0, NULL}};
static PyGetSetDef pin_getset[] = {{"_views", pin_get_views, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot pin_slots[] = {{Py_tp_new, PyType_GenericNew},   {Py_tp_init, pin_init},
                                  {Py_tp_dealloc, pin_dealloc},     {Py_tp_traverse, pin_traverse},
                                  {Py_tp_clear, pin_clear},         {Py_tp_members, pin_members},
                                  {Py_tp_getset, pin_getset},       {0, NULL}};
PyType_Spec pin_spec = {"aslab._fastpath._core.Pin", sizeof(Pin), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                        pin_slots};
